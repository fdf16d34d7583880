"""Speeds and memory that others published for Intel's devices, and what share of the peak bandwidth they come to.

In: nothing. Out: `Published` records with their sources, and efficiencies computed from them. No figure of a GLM-4 on a
GPU is used for a prediction: predictions are held against those (`GLM4`, tests/profiles/test_fit_published.py).

A token is written at the speed at which its weights and its cache are read, so that a published speed, times the bytes
of that model, over the peak bandwidth of that device, is an efficiency; other models on such devices have about it too.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cache

from edge.export.assignment import assign
from edge.export.compress.recipes import find_recipe
from edge.profiles.devices.table import Kind, device_profiles, peak_gbs
from edge.profiles.fit.figures import Figure, left_out
from edge.runtime.footprint import guessed_tensors, kv_bytes, read_tensors
from edge.runtime.spec import ModelSpec

OPENVINO = "OpenVINO docs/sphinx_setup/_static/benchmarks_files/llm_models_*.csv"
GPU_KV, NPU_KV, CPU_KV = "i8", "f16", "f16"


def _spec(layers: int, hidden: int, wide: int, kv_heads: int, words: int, name: str = "llama") -> ModelSpec:
    """A decoder with heads of 128, as far as sizes go."""
    return ModelSpec(
        architecture=name,
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=wide,
        num_heads=hidden // 128,
        num_kv_heads=kv_heads,
        head_dim=128,
        rotary_dim=128,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        vocab_size=words,
        max_position_embeddings=8192,
        qkv_bias=False,
        tied_embeddings=False,
        output_norms=False,
    )


MODELS = {
    "Llama-3-8B": _spec(32, 4096, 14336, 8, 128256),
    "ChatGLM3-6B": _spec(28, 4096, 13696, 2, 65024),
    "Mistral-7B": _spec(32, 4096, 14336, 8, 32000),
    "Llama-2-7B": _spec(32, 4096, 11008, 32, 32000),
    "Qwen3-8B": _spec(36, 4096, 12288, 8, 151936),
    "GLM-4-9B": _spec(40, 4096, 13696, 2, 151552, "glm"),
}


@dataclass(frozen=True, slots=True)
class Published:
    """One figure. Where the device is not in the table, one of its platform stands for it."""

    model: str
    recipe: str  # ours that has the same bytes
    device: str  # in devices.toml
    tok_s: float
    source: str
    prompt_tokens: int = 1024
    ttft_s: float | None = None
    memory_mib: float | None = None  # resident
    memory: str = ""  # of that machine, where it is not the device's fastest


GPU = (
    Published("Llama-3-8B", "int4-asym-g128", "core-ultra-155h.gpu", 14.66, OPENVINO, memory_mib=5569),
    Published("Llama-3-8B", "int4-asym-g128", "core-ultra-258v.gpu", 17.67, OPENVINO),
    Published("ChatGLM3-6B", "int4-asym-g128", "core-ultra-258v.gpu", 24.4, OPENVINO),
    Published("ChatGLM3-6B", "int4-asym-g128", "core-ultra-255h.gpu", 21.7, OPENVINO),
    Published("Mistral-7B", "int4-asym-g128", "core-ultra-255h.gpu", 13.4, OPENVINO),
)
NPU = (
    Published("Qwen3-8B", "int4-sym-channel", "core-ultra-155h.npu", 8.0, "openvino#35641, a comment, on a 125H"),
    Published("Qwen3-8B", "int4-sym-channel", "core-ultra-x7-358h.npu", 13.0, "OVMS demo long_context, on a 368H"),
    Published(
        "Llama-3-8B",  # DeepSeek-R1-Distill-Llama-8B
        "int4-sym-channel",
        "core-ultra-155h.npu",
        6.10,
        "OpenVINO Model Hub 2025-02, as quoted by bookstack.primecoder.com: a Core Ultra 7",
    ),
    Published(
        "Llama-2-7B",
        "int4-sym-channel",
        "core-ultra-258v.npu",
        18.55,
        "MLPerf Client 0.6, as quoted by bookstack.primecoder.com: Core Ultra series 2",
    ),
)
# Of OpenVINO or ONNX Runtime, none was found that names the processor. Two of other programs:
CPU = (
    Published("Llama-3-8B", "int4-asym-g64", "n100.cpu", 3.01, "llama.cpp Q4_K_M, brand-o/normiebench#38", 128),
    Published("GLM-4-9B", "int4-asym-g64", "xeon-8260", 9.52, "chatglm.cpp README, Q4_0, Xeon Platinum 8260", 128),
)
OTHER_PEAKS = {"xeon-8260": peak_gbs("DDR4-2933", 384)}  # six channels
PUBLISHED: dict[Kind, tuple[Published, ...]] = {"gpu": GPU, "npu": NPU, "cpu": CPU}
GUESS = 2.0  # the least factor to state for a CPU: two figures that agree are not knowledge
PROGRAMS = {"gpu": "OpenVINO's own tables", "npu": "four sources", "cpu": "other programs"}
# What predictions are held against.
GLM4 = (
    Published("GLM-4-9B", "int4-asym-g128", "core-ultra-155h.gpu", 11.6, OPENVINO, 1024, 4.411, 7065),
    Published("GLM-4-9B", "int4-asym-g128", "core-ultra-258v.gpu", 14.33, OPENVINO, 1024, 1.014, 6995),
    Published("GLM-4-9B", "int4-asym-g128", "core-ultra-288v.gpu", 13.8, OPENVINO, 1025, 1.354, 7004),
    Published("GLM-4-9B", "int4-asym-g128", "core-ultra-x7-358h.gpu", 21.6, OPENVINO, 1024, 0.328, 6148),
    Published("GLM-4-9B", "int8-asym", "core-ultra-x7-358h.gpu", 12.06, OPENVINO, 1024, 0.390, 10135),
)


def bytes_read(spec: ModelSpec, weight_bytes: int, context: int, precision: str, kind: Kind) -> int:
    """What one token reads: weights as they are stored, without an embedding of its own, and the cache."""
    tensors = guessed_tensors(spec, weight_bytes)
    unread = sum(record.nbytes for record in tensors.values()) - sum(
        record.nbytes for record in read_tensors(tensors).values()
    )
    return weight_bytes - unread + kv_bytes(spec, context, precision, kind.upper())


def efficiency_of(one: Published, kind: Kind) -> float:
    """The share of the peak bandwidth that a published speed comes to."""
    spec = MODELS[one.model]
    precision = {"gpu": GPU_KV, "npu": NPU_KV, "cpu": CPU_KV}[kind]
    read = bytes_read(spec, assign(find_recipe(one.recipe), spec).nbytes, one.prompt_tokens + 64, precision, kind)
    peak = OTHER_PEAKS.get(one.device) or device_profiles()[one.device].bandwidth_gbs
    return one.tok_s * read / 1e9 / peak


@cache
def efficiency(kind: Kind) -> Figure:
    """The median share of the peak bandwidth, and the worst factor between one figure and the median of the others."""
    known = PUBLISHED[kind]
    values = [efficiency_of(one, kind) for one in known]
    origin = f"leave-one-out over {len(known)} published figures of {PROGRAMS[kind]}"
    factor = max(left_out(values), GUESS) if kind == "cpu" else left_out(values)
    return Figure(statistics.median(values), factor, origin, about=kind != "gpu")
