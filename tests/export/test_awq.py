"""Scales folded into a block: the same function, easier to round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from edge.export import parallel, pipeline
from edge.export.compress import awq
from edge.export.compress.nncf import Compressor, alone
from edge.export.compress.precision import Precision
from edge.export.compress.rounding import nearest
from edge.export.graph import numpy_builder
from edge.export.pipeline import export
from edge.export.tensors import Float32Array, FloatArray, Weight
from edge.export.weights.names import canonical_shapes
from edge.runtime.differences import FLOAT32_BOUND
from edge.runtime.errors import RecipeError
from edge.runtime.spec import ModelSpec

INT4 = Precision(4, group_size=32)
RECIPE = "int4-asym-g64-awq-gptq"


@dataclass(frozen=True)
class Block:
    """A block of random weights, some channels of which are far larger than others."""

    spec: ModelSpec
    weights: dict[str, FloatArray]
    hidden: Float32Array  # (4, 48, H)

    @property
    def matrices(self) -> list[str]:
        return [name for name, weight in self.weights.items() if weight.ndim == 2]

    def fold(self, precision: Precision = INT4, *, text: bool = True) -> Mapping[str, FloatArray]:
        precisions = dict.fromkeys(self.matrices, precision)
        return awq.fold(self.weights, 1, self.spec, precisions, self.hidden if text else None)

    def run(self, weights: Mapping[str, Weight], hidden: Float32Array) -> Float32Array:
        return numpy_builder.block(weights, hidden, 1, self.spec)


SPECS = {
    "glm": ModelSpec("glm", 3, 64, 96, 8, 2, 16, 8, 10000.0, 1e-6, 320, 256, True, False, False),
    "glm without bias": ModelSpec("glm", 3, 64, 96, 8, 2, 16, 16, 10000.0, 1e-6, 320, 256, False, True, False),
    "one kv head": ModelSpec("glm", 3, 64, 96, 4, 1, 32, 16, 10000.0, 1e-6, 320, 256, True, False, False),
    "as many kv heads": ModelSpec("llama", 3, 64, 96, 4, 4, 16, 16, 10000.0, 1e-6, 320, 256, False, False, False),
    "qwen2": ModelSpec("qwen2", 3, 64, 96, 8, 2, 16, 16, 10000.0, 1e-6, 320, 256, True, True, False),
    "qwen3": ModelSpec("qwen3", 3, 64, 96, 4, 2, 32, 32, 10000.0, 1e-6, 320, 256, False, False, False, True),
    "glm4": ModelSpec("glm4", 3, 64, 96, 6, 2, 16, 8, 10000.0, 1e-6, 320, 256, True, False, True),
}


@cache
def made(name: str) -> Block:
    rng, spec = np.random.default_rng(5), SPECS[name]
    weights: dict[str, FloatArray] = {}
    for full, shape in canonical_shapes(spec).items():
        if full.startswith("layers.1."):
            around = 1.0 if full.endswith("norm.weight") else 0.0
            weights[full] = rng.normal(around, 0.2, shape).astype(np.float32)
    for norm in ("input_norm", "post_norm"):
        weights[f"layers.1.{norm}.weight"][rng.integers(spec.hidden_size, size=3)] *= 30
    up = weights["layers.1.mlp.gate_up.weight"][spec.intermediate_size :]
    up[rng.integers(len(up), size=4)] *= 30
    v = weights["layers.1.attn.qkv.weight"][-spec.kv_size :]
    v[rng.integers(len(v), size=2)] *= 30
    return Block(spec, weights, rng.normal(size=(4, 48, spec.hidden_size)).astype(np.float32))


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("name", SPECS)
def test_a_block_stays_the_function_that_it_is(name: str, text: bool) -> None:
    block = made(name)
    before = {key: weight.copy() for key, weight in block.weights.items()}
    folded = block.fold(text=text)
    scaled = {key for key in folded if not np.array_equal(folded[key], block.weights[key])}
    bias = {"layers.1.attn.qkv.bias"} if block.spec.qkv_bias else set()
    assert scaled == {*block.matrices, "layers.1.input_norm.weight", "layers.1.post_norm.weight", *bias}
    others = np.random.default_rng(6).normal(size=(2, 30, block.spec.hidden_size)).astype(np.float32)
    expected, found = block.run(block.weights, others), block.run(folded, others)
    assert np.abs(found - expected).max() <= FLOAT32_BOUND * np.abs(expected).max()
    assert all(np.array_equal(weight, before[key]) for key, weight in block.weights.items())


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "int4-asym-g32") for name in SPECS), ("glm4", "int4-sym-g32"), ("glm4", "int4-asym-channel")],
)
def test_it_errs_less_where_channels_differ(name: str, precision: str) -> None:
    """Rounded by nncf, on tokens that no scale was searched with."""
    block, wanted = made(name), Precision.parse(precision)
    others = np.random.default_rng(7).normal(size=(2, 60, block.spec.hidden_size)).astype(np.float32)
    expected = block.run(block.weights, others)

    def error(weights: Mapping[str, FloatArray]) -> float:
        compressor = Compressor()
        packed: dict[str, Weight] = {
            key: compressor.compress(key, weight, wanted) if key in block.matrices else weight
            for key, weight in weights.items()
        }
        return float(np.linalg.norm(block.run(packed, others) - expected))

    assert error(block.fold(wanted)) < 0.8 * error(block.weights)


def test_scales_never_lose_more_than_none() -> None:
    """Of the product, on the tokens they were searched with: a power of 0 is among those that are tried."""
    rng = np.random.default_rng(9)
    for _ in range(20):
        weight = rng.normal(size=(48, 64)).astype(np.float32) * rng.lognormal(0, 1, 64).astype(np.float32)
        tokens = rng.normal(size=(100, 64)).astype(np.float32) * rng.lognormal(0, 1, 64).astype(np.float32)
        scales = awq.scales_of_inputs(weight, tokens, INT4, (2, 2, 16))
        if scales is None:
            continue
        plain = np.linalg.norm(tokens @ (nearest(weight, INT4) - weight).T)
        scaled = np.linalg.norm(tokens / scales @ (nearest(weight * scales, INT4) - weight * scales).T)
        assert scaled < plain
        assert np.array_equal(scales.reshape(2, 2, 16)[:, 0], scales.reshape(2, 2, 16)[:, 1])


def test_scales_without_text_bring_channels_to_one_size() -> None:
    """As nncf's data-free AWQ, which runs here on a matrix whose channels share no scale."""
    weight = np.random.default_rng(10).normal(size=(48, 64)).astype(np.float32)
    weight *= np.random.default_rng(11).lognormal(0, 1, 64).astype(np.float32)
    scales = awq.scales_of_weights(weight, INT4, (1, 1, 64))
    assert scales is not None
    with alone():
        from nncf.quantization.algorithms.weight_compression.awq import AWQ
        from nncf.tensor import Tensor

        theirs = AWQ(0)._data_free_step(Tensor(weight), axis=0).data
    np.testing.assert_allclose(scales / scales[0], theirs / theirs[0], rtol=1e-5)
    shared = awq.scales_of_weights(weight, INT4, (2, 2, 16))
    assert shared is not None
    sizes = np.abs(weight * shared).mean(axis=0).reshape(2, 2, 16).mean(axis=1)
    np.testing.assert_allclose(sizes, sizes[0, 0], rtol=1e-5)
    assert np.array_equal(shared.reshape(2, 2, 16)[:, 0], shared.reshape(2, 2, 16)[:, 1])
    assert awq.scales_of_weights(np.zeros((4, 64), np.float32), INT4, (1, 1, 64)) is None


@pytest.mark.parametrize("text", [True, False])
def test_only_the_matrices_that_are_named_are_scaled(text: bool) -> None:
    block, name = made("glm"), "layers.1.mlp.down.weight"
    folded = awq.fold(block.weights, 1, block.spec, {name: INT4}, block.hidden if text else None)
    changed = {key for key in folded if folded[key] is not block.weights[key]}
    assert changed == {name, "layers.1.mlp.gate_up.weight"}
    gate = slice(None, block.spec.intermediate_size)
    up = "layers.1.mlp.gate_up.weight"
    assert np.array_equal(folded[up][gate], block.weights[up][gate])


def test_where_there_is_nothing_to_scale() -> None:
    block = made("glm")
    for text in (True, False):
        assert all(w is block.weights[name] for name, w in block.fold(Precision(8), text=text).items())
    idle = Block(block.spec, {**block.weights, "layers.1.post_norm.weight": np.zeros(64, np.float32)}, block.hidden)
    folded = idle.fold()
    for name in ("post_norm", "mlp.gate_up", "mlp.down"):
        assert folded[f"layers.1.{name}.weight"] is idle.weights[f"layers.1.{name}.weight"]
    damaged = Block(
        block.spec, {**block.weights, "layers.1.input_norm.weight": np.full(64, np.nan, np.float32)}, block.hidden
    )
    with pytest.raises(RecipeError, match="NaN or infinite; is the checkpoint damaged"):
        damaged.fold()


def test_channels_without_input_stay_finite() -> None:
    block = made("glm")
    norm = block.weights["layers.1.input_norm.weight"].copy()
    norm[:5] = 0
    folded = Block(block.spec, {**block.weights, "layers.1.input_norm.weight": norm}, block.hidden).fold()
    assert all(np.isfinite(weight).all() for weight in folded.values())


@pytest.mark.slow
def test_of_the_same_text_the_same_bytes(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many cores there are; and the bundle computes what the checkpoint does, as its checks found."""
    monkeypatch.setattr(pipeline, "WINDOWS", 2)
    exported = []
    for cores in (1, 3):
        monkeypatch.setattr(parallel, "physical_cores", lambda cores=cores: cores)
        exported.append(export(tiny_checkpoint, tmp_path / str(cores), RECIPE, format="openvino"))
    files = [manifest.files["openvino_model.bin"].sha256 for manifest in exported]
    assert files[0] == files[1]
    assert exported[0].calibration.startswith("docstrings of Python")
