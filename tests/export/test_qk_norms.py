"""Norms of q and k: every builder computes what the definition says, and models without them are written as before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace

import numpy as np
import pytest

from edge.export.graph import numpy_builder
from edge.export.graph.numpy_parallel import ParallelBuilder
from edge.export.graph.runners import OnnxRunner, OpenVINORunner
from edge.export.tensors import Float32Array, Weight
from edge.export.weights.names import canonical_shapes
from edge.runtime.differences import FLOAT32_BOUND
from edge.runtime.errors import BundleError
from edge.runtime.spec import ModelSpec

WITHOUT = ModelSpec(
    "qwen3", 1, 64, 32, 4, 2, 16, 16, 1e6, 1e-6, 32, 64, qkv_bias=False, tied_embeddings=True, output_norms=False
)
WITH = replace(WITHOUT, qk_norms=True)


def weights_of(spec: ModelSpec) -> dict[str, Float32Array]:
    """Norms around 1, whose entries differ: one that is applied to the wrong dims is seen."""
    rng = np.random.default_rng(4)
    return {
        name: (rng.normal(0, 0.3, shape) + ("norm" in name)).astype(np.float32)
        for name, shape in canonical_shapes(spec).items()
    }


def by_definition(weights: Mapping[str, Float32Array], qkv: Float32Array) -> Float32Array:
    """(T, q_size + 2 kv_size), head by head, in float64."""
    out = qkv.astype(np.float64)
    for head in range(WITH.num_heads + WITH.num_kv_heads):
        gamma = weights[f"layers.0.attn.{'q' if head < WITH.num_heads else 'k'}_norm.weight"]
        for token in out:
            x = token[head * WITH.head_dim : (head + 1) * WITH.head_dim]
            x[:] = x / np.sqrt((x * x).mean() + WITH.rms_norm_eps) * gamma
    return out.astype(np.float32)


def test_numpy_norms_each_head_by_its_own_dims() -> None:
    weights = weights_of(WITH)
    qkv = np.random.default_rng(5).normal(0, 2, (1, 7, WITH.q_size + 2 * WITH.kv_size)).astype(np.float32)
    expected = by_definition(weights, qkv[0])
    for builder in (
        numpy_builder.NumpyBuilder(weights, WITH),
        ParallelBuilder(weights, WITH, lambda name, _inputs: weights[name]),
    ):
        found = builder.qk_norm(qkv, "layers.0.attn", WITH)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(expected[:, -WITH.kv_size :], qkv[0, :, -WITH.kv_size :])  # v


@pytest.mark.parametrize("rotary_dim", [16, 8], ids=["rotated by attention", "rotated before"])
@pytest.mark.parametrize("runner", [OpenVINORunner, OnnxRunner])
def test_engines_equal_numpy(runner: type[OpenVINORunner | OnnxRunner], rotary_dim: int) -> None:
    """ONNX Runtime's attention rotates heads in whole sixteens by itself, others are rotated before."""
    spec = replace(WITH, rotary_dim=rotary_dim)
    weights: dict[str, Weight] = {**weights_of(spec)}
    hidden = np.random.default_rng(6).normal(0, 1, (1, 9, spec.hidden_size)).astype(np.float32)
    expected = numpy_builder.block(weights, hidden, 0, spec)
    assert np.abs(runner().block(weights, hidden, 0, spec) - expected).max() <= FLOAT32_BOUND * np.abs(expected).max()
    without = numpy_builder.block(weights, hidden, 0, replace(spec, qk_norms=False))
    assert np.abs(without - expected).max() > 0.01, "and they make a difference"


def test_parameters_are_those_of_all_weights() -> None:
    for spec in (WITH, WITHOUT):
        assert spec.num_parameters == sum(int(np.prod(shape)) for shape in canonical_shapes(spec).values())


def test_a_spec_without_them_is_written_as_before_there_were_any() -> None:
    """Graphs and manifests of earlier versions hold these lines, byte by byte."""
    later = {"qk_norms", "residual_exponent", "output_exponent", "safe_norms", "rope_sections"}
    old = {field.name for field in fields(ModelSpec)} - later
    assert set(WITHOUT.to_json()) == old
    assert WITHOUT.to_line() == (
        '{"architecture": "qwen3", "head_dim": 16, "hidden_size": 64, "intermediate_size": 32, '
        '"max_position_embeddings": 64, "num_heads": 4, "num_kv_heads": 2, "num_layers": 1, "output_norms": false, '
        '"qkv_bias": false, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "rotary_dim": 16, "tied_embeddings": true, '
        '"vocab_size": 32}'
    )
    assert WITH.to_json() == WITHOUT.to_json() | {"qk_norms": True}
    for spec in (WITH, WITHOUT):
        assert ModelSpec.from_json(json.loads(spec.to_line())) == spec


def test_a_spec_with_something_else_is_refused() -> None:
    with pytest.raises(BundleError, match="qk_norms is 'yes', expected true or false"):
        ModelSpec.from_json(WITHOUT.to_json() | {"qk_norms": "yes"})
    with pytest.raises(BundleError, match="has the field 'q_norms', which is unknown"):
        ModelSpec.from_json(WITHOUT.to_json() | {"q_norms": True})
