"""What a layer's attention takes on ONNX Runtime behind contexts of several lengths, and what else it could be.

    python benchmarks/attention.py [--heads 32 --shared 16 --dim 128 --rotary 64] [--contexts 512,4096] [--new 1,128]

Caches of float32, float16 and int8 (with a scale for every channel), and heads that share keys joined, as our graphs
have them for a single token. All of them run in turn, in one process; the medians of the rounds are printed. Before
each, memory is read that is larger than any cache of a processor, as the weights are in a model.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

from edge.export.graph.onnx.attention import Attention, Lengths, joined_choices
from edge.export.graph.onnx.writer import CONTRIB, Borrowed, GraphWriter
from edge.runtime.bundle import JOINED_FROM
from edge.runtime.rotary import cos_and_sin
from edge.runtime.spec import ModelSpec

FLUSHED = 1 << 28  # bytes that are read in between
RANGE = 5.0  # of keys and values, for int8
KINDS = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
Given = dict[str, np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("heads", 32), ("shared", 16), ("dim", 128), ("rotary", 64), ("rounds", 7), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--contexts", default="512,4096,16384")
    parser.add_argument("--new", default="1,128")
    args = parser.parse_args()
    spec = ModelSpec(
        "glm", 1, args.heads * args.dim, 1, args.heads, args.heads // args.shared, args.dim, args.rotary, 1e4, 1e-5, 8,
        1 << 20, qkv_bias=False, tied_embeddings=False, output_norms=False,
    )  # fmt: skip
    contexts, news = ([int(one) for one in given.split(",")] for given in (args.contexts, args.new))
    length, rng = max(contexts) + max(news), np.random.default_rng(0)
    cache = rng.standard_normal((1, spec.num_kv_heads, length, spec.head_dim), np.float32)
    memory = np.ones(FLUSHED // 4, np.float32)
    print("| context | new tokens | way | ms | least to most | largest error |\n|---|---|---|---|---|---|")
    for context in contexts:
        for new in news:
            tokens = rng.standard_normal((1, new, spec.q_size + 2 * spec.kv_size), np.float32)
            joined = joined_choices(spec) if new == 1 and context > JOINED_FROM else []
            ways: dict[str, Callable[[], np.ndarray]] = {
                **{kind: attention(spec, kind, 0, cache, tokens, context, args.threads) for kind in KINDS},
                **{
                    f"f32, {rows} heads joined": attention(spec, "f32", rows, cache, tokens, context, args.threads)
                    for rows in joined
                },
            }
            for name, times, error in measured(ways, memory, args.rounds):
                print(
                    f"| {context:,} | {new} | {name} | {statistics.median(times):.2f} | {min(times):.2f} to "
                    f"{max(times):.2f} | {error:.1e} |",
                    flush=True,
                )
    return 0


def measured(
    ways: dict[str, Callable[[], np.ndarray]], memory: np.ndarray, rounds: int
) -> list[tuple[str, list[float], float]]:
    """Of each way: ms of every round, and the largest difference from the first way."""
    results = {name: run() for name, run in ways.items()}
    expected, times = next(iter(results.values())), {name: list[float]() for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            memory.sum()
            started = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - started))
    return [(name, times[name], float(np.abs(results[name] - expected).max())) for name in ways]


def attention(
    spec: ModelSpec, kind: str, rows: int, cache: np.ndarray, tokens: np.ndarray, context: int, threads: int
) -> Callable[[], np.ndarray]:
    """What runs a layer once, over a cache of its own of this kind. rows: heads that are joined."""
    w, wide = GraphWriter(Borrowed()), TensorProto.FLOAT16 if kind == "f16" else TensorProto.FLOAT
    x = w.input("x", TensorProto.FLOAT, ["batch", "tokens", tokens.shape[-1]])
    lengths = Lengths(w.input("last", TensorProto.INT32, ["batch"]), w.input("longest", TensorProto.INT32, [1]))
    tables = (w.input("cos", wide, ["positions", "half"]), w.input("sin", wide, ["positions", "half"]))
    x = w.op("Cast", x, to=TensorProto.FLOAT16) if kind == "f16" else x
    shape = ["batch", spec.num_kv_heads, "buffer", spec.head_dim]
    for name in ("key", "value"):
        w.input(f"past_key_values.0.{name}", KINDS[kind], shape)
        w.output(f"present.0.{name}", KINDS[kind], shape)
    if kind == "int8":
        _in_int8(w, spec, x, lengths, tables)
    elif rows:
        Attention(w, spec, lengths, None, tables).by_length(x, 0, rows)
    else:
        Attention(w, spec, lengths, None, tables).of_tokens(x, 0)
    w.op("Cast", "layers.0.attn", name="out", to=TensorProto.FLOAT)
    w.output("out", TensorProto.FLOAT, ["batch", "tokens", spec.q_size])
    numbers = np.float16 if kind == "f16" else np.float32
    given: Given = dict(zip(("cos", "sin"), cos_and_sin(np.arange(cache.shape[2]), spec, numbers), strict=True))
    total = context + tokens.shape[1]
    given |= {"x": tokens, "last": np.array([total - 1], np.int32), "longest": np.array([total], np.int32)}
    for name in ("key", "value"):
        held = (
            np.rint(cache * (127 / RANGE)).clip(-127, 127).astype(np.int8) if kind == "int8" else cache.astype(numbers)
        )
        given[f"past_key_values.0.{name}"] = held
        given[f"{name[0]}_scale"] = np.full((spec.num_kv_heads, 1, spec.head_dim), RANGE / 127, np.float32)
    return _session(w.model("attention").SerializeToString(), given, threads)


def _in_int8(w: GraphWriter, spec: ModelSpec, x: str, lengths: Lengths, tables: tuple[str, str]) -> None:
    scales = [w.input(f"{name}_scale", TensorProto.FLOAT, ["keys", 1, "dim"]) for name in "kv"]
    w.ops(
        "GroupQueryAttention",
        *(x, "", "", "past_key_values.0.key", "past_key_values.0.value", *lengths, *tables, "", "", "", *scales),
        outputs=("layers.0.attn", "present.0.key", "present.0.value"),
        domain=CONTRIB,
        num_heads=spec.num_heads,
        kv_num_heads=spec.num_kv_heads,
        do_rotary=1,
        k_quant_type="PER_CHANNEL",
        v_quant_type="PER_CHANNEL",
        kv_cache_bit_width=8,
    )


def _session(model: bytes, given: Given, threads: int) -> Callable[[], np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else they spin while another one runs
    session: Any = ort.InferenceSession(model, options, ["CPUExecutionProvider"])
    binding = session.io_binding()
    out = np.empty((1, given["x"].shape[1], session.get_outputs()[-1].shape[-1]), np.float32)
    for value in session.get_inputs():
        array = given[value.name]
        binding.bind_input(value.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    for value in session.get_outputs():
        array = given.get(value.name.replace("present", "past_key_values"), out)
        binding.bind_output(value.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run() -> np.ndarray:
        session.run_with_iobinding(binding)
        assert given  # whose memory is bound
        return out

    return run


if __name__ == "__main__":
    sys.exit(main())
