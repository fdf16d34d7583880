"""GPTQ against its definition, written out; and that it does what it is for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edge.export.compress import gptq
from edge.export.compress.drift import Drift, move
from edge.export.compress.moments import DAMPING, _factor, moments
from edge.export.compress.precision import Precision
from edge.export.compress.rounding import nearest
from edge.export.tensors import unpack
from edge.runtime.errors import RecipeError
from tests.oracle import dequantize

PRECISIONS = [
    Precision.parse(text)
    for text in ("int4-asym-g64", "int4-sym-g64", "int4-asym-channel", "int4-sym-g32", "int2-sym-g64", "int2-asym-g32")
]
INTEGERS = {(4, True): (-8, 7), (4, False): (0, 15), (2, True): (-2, 1), (2, False): (0, 3)}
Floats = npt.NDArray[np.float32]


def make(n: int = 40, k: int = 192, tokens: int = 600, seed: int = 0) -> tuple[Floats, Floats]:
    """A matrix (N, K) and correlated inputs (T, K), some of whose columns are heavy."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((k, k)) * np.exp(rng.standard_normal(k))
    inputs = rng.standard_normal((tokens, k)) @ mixing
    return rng.standard_normal((n, k)).astype(np.float32), inputs.astype(np.float32)


def by_definition(weight: Floats, inputs: Floats, precision: Precision) -> Floats:
    """The algorithm of the paper in float64: the inverse of the moments, one column after the other, heaviest first."""
    k = weight.shape[1]
    group = precision.group_size or k
    moments = inputs.T.astype(np.float64) @ inputs
    importance = np.diagonal(moments).copy()
    scale, zero = gptq._scales(weight, importance.astype(np.float32), precision)
    low, high = INTEGERS[precision.bits, precision.symmetric]
    moments[np.diag_indices(k)] += DAMPING * importance.mean()
    left, rounded = weight.astype(np.float64), np.empty(weight.shape)
    free = list(np.argsort(importance, kind="stable")[::-1])
    while free:
        column, inverse = free[0], np.linalg.inv(moments[np.ix_(free, free)])
        step, middle = scale[:, column // group], zero[:, column // group]
        integers = np.clip(np.rint(left[:, column] / step) + middle, low, high)
        rounded[:, column] = (integers - middle) * step
        lost = left[:, column] - rounded[:, column]
        left[:, free] -= lost[:, None] * inverse[0] / inverse[0, 0]
        free = free[1:]
    return rounded.astype(np.float32)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_it_is_the_algorithm_of_the_paper(precision: Precision) -> None:
    weight, inputs = make(n=12, k=64)
    ours = dequantize(gptq.quantize(weight, moments(inputs), precision))
    expected = by_definition(weight, inputs, precision)
    # A sum in float32 may fall on the other side of a half now and then, and moves what is rounded after it.
    assert np.mean(np.isclose(ours, expected, rtol=1e-5, atol=1e-6)) > 0.97


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_products_err_less_than_those_of_rounded_weights(precision: Precision) -> None:
    """By half of its power and more, as the paper's figures have it; measured: 0.31 to 0.41."""
    weight, inputs = make()
    packed = gptq.quantize(weight, moments(inputs), precision)
    assert error(dequantize(packed) - weight, inputs) < 0.5 * error(nearest(weight, precision) - weight, inputs)


def error(difference: Floats, inputs: Floats) -> float:
    return float(np.square(inputs @ difference.T).sum())


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_bytes_are_laid_out_as_nncf_lays_them_out(precision: Precision) -> None:
    weight, inputs = make()
    packed = gptq.quantize(weight, moments(inputs), precision)
    assert packed.signed == precision.symmetric
    assert packed.scale.dtype == np.float16
    assert packed.scale.shape == (40, 192 // (precision.group_size or 192))
    assert (packed.zero_point is None) == precision.symmetric
    values = unpack(packed.data, weight.size, precision.bits, signed=packed.signed)
    low, high = INTEGERS[precision.bits, precision.symmetric]
    assert (values.min(), values.max()) == (low, high)
    assert packed.data.nbytes == weight.size * precision.bits // 8


def test_weights_that_are_on_the_grid_stay() -> None:
    """Exactly representable weights lose nothing, whatever the inputs."""
    rng = np.random.default_rng(3)
    integers = rng.integers(0, 16, (8, 4, 64))
    integers[..., 0], integers[..., 1] = 0, 15
    weight = ((integers - 7) * np.float32(0.25)).reshape(8, 256).astype(np.float32)
    _, inputs = make(k=256)
    np.testing.assert_array_equal(dequantize(gptq.quantize(weight, moments(inputs), Precision(4, False, 64))), weight)


def test_the_number_of_cores_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = make(n=1100)
    one = gptq.quantize(weight, moments(inputs), PRECISIONS[0])
    monkeypatch.setattr("edge.export.parallel.physical_cores", lambda: 1)
    other = gptq.quantize(weight, moments(inputs), PRECISIONS[0])
    np.testing.assert_array_equal(one.data, other.data)
    np.testing.assert_array_equal(one.scale, other.scale)


def test_inputs_and_weights_of_zero() -> None:
    weight, inputs = make()
    inputs[:, 5] = 0
    weight[3] = 0
    packed = dequantize(gptq.quantize(weight, moments(inputs), PRECISIONS[0]))
    assert np.isfinite(packed).all()
    np.testing.assert_array_equal(packed[3], 0)
    assert np.isfinite(dequantize(gptq.quantize(weight, moments(np.zeros_like(inputs)), PRECISIONS[0]))).all()


def test_fewer_tokens_than_columns() -> None:
    weight, inputs = make(tokens=20)
    assert np.isfinite(dequantize(gptq.quantize(weight, moments(inputs), PRECISIONS[0]))).all()


def test_moments_that_rounding_made_indefinite_are_damped_more() -> None:
    """And what was tried before leaves no trace."""
    rng = np.random.default_rng(2)
    half = rng.standard_normal((300, 300)).astype(np.float32)
    moments = half @ half.T
    moments -= 2 * DAMPING * np.diagonal(moments).mean() * np.eye(300, dtype=np.float32)
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(moments + DAMPING * np.diagonal(moments).mean() * np.eye(300))
    damped = moments.copy()
    damped[np.diag_indices(300)] += 10 * DAMPING * np.diagonal(moments).mean()
    factor = np.triu(_factor(moments.copy()))
    np.testing.assert_allclose(factor.T @ factor, damped, rtol=1e-4, atol=1e-3 * damped.max())


def test_activations_that_are_not_finite() -> None:
    weight, inputs = make()
    inputs[7, 7] = np.inf
    with pytest.raises(RecipeError, match="NaN or infinite"), np.errstate(invalid="ignore"):
        gptq.quantize(weight, moments(inputs), PRECISIONS[0])


def test_drift_moves_the_weights_that_are_rounded() -> None:
    """As if the best float weights for the outputs that are wanted had been given, with the damping of GPTQ."""
    weight, inputs = make(n=24, k=192, tokens=900)
    rng = np.random.default_rng(5)
    wanted = inputs @ weight.T + rng.standard_normal((900, 24)).astype(np.float32)
    drift = (wanted - inputs @ weight.T).T @ inputs
    damped = inputs.T.astype(np.float64) @ inputs
    damped[np.diag_indices(192)] += DAMPING * np.diagonal(damped).mean()
    best = weight + np.linalg.solve(damped, drift.T).T
    known = moments(inputs)
    ours = dequantize(gptq.quantize(move(weight, known, Drift(drift.copy(), of_inputs=False)), known, PRECISIONS[0]))
    expected = dequantize(gptq.quantize(best.astype(np.float32), moments(inputs), PRECISIONS[0]))
    assert np.mean(np.isclose(ours, expected, rtol=1e-4, atol=1e-5)) > 0.97
    plain = dequantize(gptq.quantize(weight, moments(inputs), PRECISIONS[0]))
    assert np.square(inputs @ ours.T - wanted).sum() < np.square(inputs @ plain.T - wanted).sum()


def test_what_inputs_lack_moves_the_weights_as_what_outputs_lack_for_it() -> None:
    weight, inputs = make(n=300, k=192, tokens=900)
    lacking = make(k=192, tokens=900, seed=6)[1]
    known = moments(inputs)
    of_outputs: Floats = ((lacking @ weight.T).T @ inputs).astype(np.float32)
    outputs = move(weight, known, Drift(of_outputs, of_inputs=False))
    found = move(weight, known, Drift((lacking.T @ inputs).astype(np.float32), of_inputs=True))
    moved = np.abs(outputs - weight).max()
    assert moved > 0.01
    assert np.abs(found - outputs).max() < 1e-4 * moved
