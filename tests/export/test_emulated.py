"""Emulated devices: what they round, and nothing else."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge.export.compress.nncf import Compressor
from edge.export.compress.precision import Precision
from edge.export.graph import decoder
from edge.export.graph.emulated import (
    BFLOAT16,
    FLOAT16,
    FLOAT16_NORMS,
    FLOAT16_SUMS,
    INT8_ACTIVATIONS,
    EmulatedBuilder,
    Numerics,
    rounded,
)
from edge.export.graph.numpy_builder import NumpyBuilder
from edge.export.plan import make_plan
from edge.export.settings import ExportSettings
from edge.export.tensors import Float32Array, PackedTensor, Weight, integers_of, to_float32
from edge.runtime.differences import kl_divergence
from edge.runtime.spec import ModelSpec
from tests import tiny

IDS: npt.NDArray[Any] = np.arange(2, 26).reshape(1, 24)
NOTHING = Numerics("float32")
FLOATS = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Weight], ModelSpec]:
    """A tiny model, its blocks in 4 bits."""
    folder = tmp_path_factory.mktemp("emulated") / "checkpoint"
    tiny.make(tiny.TINIES[0], folder)
    plan = make_plan(folder, ExportSettings("int4-asym-g64"))
    compressor = Compressor()
    weights: dict[str, Weight] = {}
    for name, assigned in plan.assignments.items():
        values = to_float32(plan.weights.read(name))
        packs = assigned.in_block and not assigned.precision.is_float
        weights[name] = compressor.compress(name, values, assigned.precision) if packs else values
    return weights, plan.spec


def logits(model: tuple[dict[str, Weight], ModelSpec], numerics: Numerics) -> Float32Array:
    builder = EmulatedBuilder(*model, numerics)
    found: Float32Array = decoder.decoder(builder, IDS, model[1])
    assert np.isfinite(found).all() == (not builder.not_finite)
    return found


def test_where_nothing_is_rounded_it_is_plain_arithmetic(model: tuple[dict[str, Weight], ModelSpec]) -> None:
    expected: Float32Array = decoder.decoder(NumpyBuilder(*model), IDS, model[1])
    np.testing.assert_array_equal(logits(model, NOTHING), expected)


@pytest.mark.parametrize("numerics", [FLOAT16, FLOAT16_NORMS, FLOAT16_SUMS, BFLOAT16, INT8_ACTIVATIONS], ids=str)
def test_a_harmless_model_loses_little_and_something(
    model: tuple[dict[str, Weight], ModelSpec], numerics: Numerics
) -> None:
    exact, found = logits(model, NOTHING), logits(model, numerics)
    assert 0 < kl_divergence(exact[0], found[0]) < 3e-2


@given(FLOATS)
def test_rounding_is_that_of_the_types_themselves(values: Float32Array) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        brain = values.astype(ml_dtypes.bfloat16).astype(np.float32)
        half = values.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(rounded(values, "bfloat16"), brain)
    np.testing.assert_array_equal(rounded(values, "float16"), half)
    assert rounded(values, "float32") is values


@pytest.mark.parametrize("precision", ["int4-asym-g32", "int4-sym-g64", "int4-sym-channel"])
def test_sums_of_groups_are_kept_before_they_are_scaled(precision: str) -> None:
    """Against loops over single groups, in numpy's own float16."""
    rng = np.random.default_rng(0)
    matrix = Compressor().compress(
        "layers.0.mlp.down.weight", rng.normal(size=(5, 64)) / 200, Precision.parse(precision)
    )
    assert isinstance(matrix, PackedTensor)
    x = rounded(rng.normal(size=(3, 64)).astype(np.float32) * 300, "float16")
    spec = make_spec(hidden_size=64)
    found = EmulatedBuilder({"one.weight": matrix}, spec, FLOAT16_SUMS).linear(x, "one")
    integers, size = integers_of(matrix, 0, 5), matrix.group_size
    for token in range(3):
        for row in range(5):
            total = np.float16(0)
            for group in range(matrix.groups):
                inside = np.float16(x[token, group * size : (group + 1) * size] @ integers[row, group])
                total = np.float16(total + np.float16(inside * matrix.scale[row, group]))
            assert found[token, row] == pytest.approx(float(total), rel=4e-3, abs=2e-2)
    most = np.sign(integers[0].ravel()) * np.float32(16_000)  # every term of row 0 adds to its sums
    builder = EmulatedBuilder({"one.weight": matrix}, spec, FLOAT16_SUMS)
    exact = NumpyBuilder({"one.weight": matrix}, spec).linear(most[None], "one")
    assert not np.isfinite(builder.linear(most[None], "one")).all()
    assert np.isfinite(rounded(exact, "float16")).all(), "the product itself fits"
    assert builder.not_finite == ["one"]


def test_float16_ends_where_hardware_ends() -> None:
    np.testing.assert_array_equal(
        rounded(np.array([65519, 65520, -7e4, 2.0**-25, 2.0**-24], np.float32), "float16"),
        [65504, np.inf, -np.inf, 0, 2.0**-24],
    )


def make_spec(hidden_size: int) -> ModelSpec:
    return ModelSpec("glm", 1, hidden_size, 64, 1, 1, 64, 64, 1e4, 1e-6, 64, 64, False, False, False)
