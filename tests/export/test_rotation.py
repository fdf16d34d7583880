"""Rotation changes weights and no function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.export.graph import decoder
from edge.export.graph.numpy_builder import NumpyBuilder
from edge.export.plan import make_plan
from edge.export.settings import ExportSettings
from edge.export.tensors import Float32Array, to_float32
from edge.export.weights.names import canonical_shapes
from edge.export.weights.rotation import RotatedWeights, Rotation
from edge.export.weights.source import Weights, WeightSource
from edge.runtime.differences import FLOAT32_BOUND
from edge.runtime.errors import RecipeError
from tests import tiny

IDS: npt.NDArray[Any] = np.arange(2, 50).reshape(2, 24)


def logits(weights: WeightSource) -> Float32Array:
    floats = {name: to_float32(weights.read(name)) for name in canonical_shapes(weights.spec)}
    found: Float32Array = decoder.decoder(NumpyBuilder(floats, weights.spec), IDS, weights.spec)
    return found


@pytest.mark.parametrize("kind", tiny.TINIES, ids=str)
def test_the_same_function(kind: tiny.Tiny, tmp_path: Path) -> None:
    tiny.make(kind, tmp_path / "checkpoint")
    weights = make_plan(tmp_path / "checkpoint", ExportSettings("fp32")).weights
    assert isinstance(weights, Weights)
    if weights.spec.output_norms:
        with pytest.raises(RecipeError, match="use -awq-gptq instead"):
            RotatedWeights(weights)
        return
    rotated = RotatedWeights(weights)
    expected, found = logits(weights), logits(rotated)
    assert np.abs(found - expected).max() <= FLOAT32_BOUND * np.abs(expected).max()
    assert not rotated.spec.tied_embeddings
    changed = rotated.read("layers.0.attn.o.weight")
    assert np.abs(changed - to_float32(weights.read("layers.0.attn.o.weight"))).max() > 0.01


@pytest.mark.parametrize("size", [1, 2, 9, 64, 576, 96])
def test_orthogonal(size: int) -> None:
    matrix = Rotation(size).apply(np.eye(size, dtype=np.float32))
    exact = matrix.astype(np.float64)
    np.testing.assert_allclose(exact @ exact.T, np.eye(size), atol=1e-6)
    np.testing.assert_array_equal(Rotation(size).apply(np.eye(size, dtype=np.float32)), matrix)
    rows = np.random.default_rng(size).standard_normal((5, size)).astype(np.float32)
    np.testing.assert_allclose(Rotation(size).apply(rows), rows @ matrix, atol=1e-5)


def test_it_spreads_an_outlier_over_all_channels() -> None:
    """One heavy channel is as heavy as all others afterwards."""
    stream = np.zeros((1, 4096), np.float32)
    stream[0, 17] = 64
    np.testing.assert_allclose(np.abs(Rotation(4096).apply(stream)), 1, rtol=1e-5)
