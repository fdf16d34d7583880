"""What a model takes of memory: against what was measured, and how it grows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.commands.recipes import GLM4_9B
from edge.export.assignment import assign
from edge.export.compress.recipes import recipes
from edge.runtime.bundle import OnnxKernels, open_bundle
from edge.runtime.footprint import Footprint, footprint, guessed_tensors, kv_bytes, read_bytes
from edge.runtime.spec import ModelSpec

SMOL = ModelSpec(
    architecture="llama",
    num_layers=30,
    hidden_size=576,
    intermediate_size=1536,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rotary_dim=64,
    rope_theta=100_000.0,
    rms_norm_eps=1e-5,
    vocab_size=49152,
    max_position_embeddings=8192,
    qkv_bias=False,
    tied_embeddings=True,
    output_norms=False,
)
LAYERS_2, LAYERS_8 = (replace(GLM4_9B, num_layers=count) for count in (2, 8))
SMALL_TOKENIZER = 30_000  # bytes of that beside a synthetic checkpoint
# Model, recipe, engine, cache, tokens of the prompt -> MB that could not be dropped and MB resident, at their peaks.
# One fresh process each on Linux x86-64, openvino 2026.4.1, onnxruntime 1.32.0.
MEASURED = (
    (LAYERS_2, "int4-asym-g128", "onnx", "f32", 1024, 1257, 1900),
    (LAYERS_2, "int4-asym-g128", "openvino", "bf16", 1024, 1007, 1911),
    (LAYERS_2, "int8-asym", "onnx", "f32", 4096, 1316, 1802),
    (LAYERS_2, "int8-asym", "openvino", "f16", 4096, 1277, 2384),
    (LAYERS_2, "int4-sym-g128", "onnx", "f32", 1024, 1239, 1880),
    (LAYERS_2, "int4-sym-g128", "openvino", "bf16", 1024, 1007, 1912),
    (LAYERS_8, "int4-asym-g128", "onnx", "f32", 4096, 2061, 2635),
    (LAYERS_8, "int4-asym-g128", "openvino", "bf16", 4096, 1754, 3278),
    (LAYERS_8, "int4-sym-channel", "onnx", "f32", 1024, 1935, 2551),
    (LAYERS_8, "int4-sym-channel", "openvino", "bf16", 1024, 1607, 3122),
    (SMOL, "int8-asym", "onnx", "f32", 200, 269, 318),
    (SMOL, "int8-asym", "openvino", "f16", 1024, 278, 489),
    (SMOL, "fp16", "onnx", "f32", 200, 757, 799),
    (SMOL, "fp16", "openvino", "f16", 200, 1175, 1252),
    (SMOL, "fp32", "onnx", "f32", 200, 629, 789),
    (SMOL, "fp32", "openvino", "f16", 200, 641, 1251),
)
CHUNK = {"onnx": 128, "openvino": 512}


def of_recipe(spec: ModelSpec, recipe: str, engine: str, kv: str, context: int, *, known: bool = True) -> Footprint:
    assigned = assign(recipes()[recipe], spec)
    tokenizer = 3_522_656 if spec == SMOL else SMALL_TOKENIZER
    return footprint(
        spec,
        assigned.nbytes,
        engine=engine,
        context_tokens=context,
        kv_precision=kv,
        prefill_chunk=CHUNK[engine],
        tensors={name: one.record() for name, one in assigned.items()} if known else None,
        tokenizer_bytes=tokenizer,
    )


@pytest.mark.parametrize(("spec", "recipe", "engine", "kv", "prompt", "fixed", "resident"), MEASURED)
def test_it_is_what_was_measured(
    spec: ModelSpec, recipe: str, engine: str, kv: str, prompt: int, fixed: int, resident: int
) -> None:
    """Asked for are 10 %; the constants come from the same runs, so that more would be a mistake of the formula."""
    found = of_recipe(spec, recipe, engine, kv, prompt + 8)
    assert found.peak / 1e6 == pytest.approx(fixed, rel=0.05)
    assert found.resident_peak / 1e6 == pytest.approx(resident, rel=0.06)
    assert not found.about


@pytest.mark.parametrize(("spec", "recipe", "engine", "kv", "prompt", "fixed", "_resident"), MEASURED)
def test_bytes_alone_say_nearly_as_much(
    spec: ModelSpec, recipe: str, engine: str, kv: str, prompt: int, fixed: int, _resident: int
) -> None:
    assert of_recipe(spec, recipe, engine, kv, prompt + 8, known=False).peak / 1e6 == pytest.approx(fixed, rel=0.1)


@pytest.mark.parametrize("recipe", recipes())
def test_a_guess_has_the_bytes_that_it_was_made_from(recipe: str) -> None:
    weight_bytes = assign(recipes()[recipe], GLM4_9B).nbytes
    guessed = sum(record.nbytes for record in guessed_tensors(GLM4_9B, weight_bytes).values())
    assert guessed == pytest.approx(weight_bytes, rel=0.05)


# Blocks of the caches in models that openvino compiled: GLM-4's 2 heads of 128, a block of 32 tokens.
@pytest.mark.parametrize(
    ("precision", "block"),
    [
        ("f32", 2 * 2 * 32 * 128 * 4),
        ("bf16", 2 * 2 * 32 * 128 * 2),
        ("u8", 2 * (40 * 128 + 32 * 136)),
        ("u4", 2 * (48 * 128 + 32 * 144) // 2),
    ],
)
def test_a_block_of_the_cache(precision: str, block: int) -> None:
    assert kv_bytes(GLM4_9B, 32, precision) == 40 * block == kv_bytes(GLM4_9B, 1, precision)
    assert kv_bytes(GLM4_9B, 33, precision) == 2 * 40 * block


def test_a_block_of_a_gpu_has_16_tokens_and_scales_beside_them() -> None:
    assert kv_bytes(GLM4_9B, 16, "i8", "GPU") == 40 * 2 * (128 * 20 + 16 * 132)


ENGINES = st.sampled_from(["onnx", "openvino", "openvino_npu"])
PRECISIONS = st.sampled_from(["f32", "f16", "bf16", "u8", "u4"])


@given(st.data())
def test_more_of_anything_never_takes_less(data: st.DataObject) -> None:
    engine, kv = data.draw(ENGINES), data.draw(PRECISIONS)
    device = data.draw(st.sampled_from(["CPU", "GPU", "GPU.1"]))
    weight_bytes = data.draw(st.integers(10**6, 10**11))
    context, sequences, chunk = (data.draw(st.integers(1, most)) for most in (1 << 20, 64, 4096))

    def peak(context: int, sequences: int, chunk: int) -> int:
        return footprint(
            LAYERS_2,
            weight_bytes,
            engine=engine,
            context_tokens=context,
            kv_precision=kv,
            prefill_chunk=chunk,
            sequences=sequences,
            device=device,
        ).peak

    least = peak(context, sequences, chunk)
    assert least > 0
    assert peak(context * 2, sequences, chunk) >= least
    assert peak(context, sequences + 1, chunk) >= least
    assert peak(context, sequences, chunk + 1) >= least


def test_finer_caches_take_more() -> None:
    sizes = [kv_bytes(GLM4_9B, 8192, precision) for precision in ("u4", "u8", "f16", "f32")]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4


def test_a_device_that_was_never_measured_is_about() -> None:
    for engine, device in (("openvino", "GPU"), ("openvino_npu", "NPU"), ("openvino_npu", "CPU")):
        found = footprint(
            GLM4_9B, 10**9, engine=engine, device=device, context_tokens=8, kv_precision="f16", prefill_chunk=8
        )
        assert found.about


def test_weights_of_foreign_graphs_have_other_names() -> None:
    records = {"a": replace(guessed_tensors(SMOL, 10**8)["embed.weight"], shape=(64, 64), nbytes=4096)}
    for engine in ("onnx", "openvino"):
        found = footprint(
            SMOL, 4096, engine=engine, context_tokens=8, kv_precision="f32", prefill_chunk=8, tensors=records
        )
        assert found.weights > 0


def test_what_a_token_reads_is_what_the_products_of_the_graph_are_given(int4_bundle: Path) -> None:
    """Integers, and 8 bytes a block of each product, whose blocks are the graph's own; floats in float32."""
    bundle = open_bundle(int4_bundle)
    total = 0
    for path in bundle.onnx_parts(OnnxKernels(int8_activations=True)):
        for node in onnx.load(path, load_external_data=False).graph.node:
            if node.op_type == "MatMulNBits":
                given = {one.name: one.i for one in node.attribute}
                numbers = given["N"] * given["K"]
                total += numbers * given["bits"] // 8 + 8 * numbers // given["block_size"]
    floats = sum(4 * one.shape[0] for one in bundle.manifest.tensors.values() if len(one.shape) == 1)
    assert total > 0
    assert read_bytes(bundle.manifest.tensors, "onnx") == total + floats


def test_float_weights_are_read_in_float32() -> None:
    records = guessed_tensors(SMOL, 270_000_000)
    assert {record.bits for record in records.values()} == {16}
    numbers = sum(record.shape[0] * record.shape[1] for record in records.values())
    assert read_bytes(records, "onnx") == read_bytes(records, "openvino") == 4 * numbers
