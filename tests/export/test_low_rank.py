"""A product of two narrow matrices beside a rounded one: the best there is, stored and computed alike everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.export import parallel
from edge.export.compress import low_rank
from edge.export.compress.moments import DAMPING, moments
from edge.export.compress.nncf import Compressor
from edge.export.compress.precision import Precision
from edge.export.graph.runners import OnnxRunner, OpenVINORunner, Runner
from edge.export.tensors import Float32Array, PackedTensor, Weight, as_unsigned, rows_of
from edge.export.weights.names import canonical_shapes
from edge.export.weights.store import WeightStore
from edge.runtime.differences import FLOAT32_BOUND, distance
from edge.runtime.spec import ModelSpec
from tests.oracle import dequantize

RANK = 16
SPEC = ModelSpec("glm", 2, 64, 96, 4, 2, 16, 8, 10000.0, 1e-6, 320, 256, True, False, False)


def made(symmetric: bool, n: int = 80, k: int = 96) -> tuple[Float32Array, Float32Array, PackedTensor]:
    """A matrix (N, K), inputs (T, K) of very different size, and the matrix rounded without looking at them."""
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(n, k)).astype(np.float32)
    inputs = (rng.normal(size=(400, k)) * rng.lognormal(0, 1, k)).astype(np.float32)
    inputs[:, : k // 2] += inputs[:, k // 2 :]
    return weight, inputs, Compressor().compress("layers.0.mlp.down.weight", weight, Precision(4, symmetric, 32))


def exact(_name: str, matrix: Float32Array) -> PackedTensor:
    """Every weight with a scale of its own, in float32: what is to be seen is not how narrow matrices are rounded."""
    signs = np.sign(matrix).astype(np.int8).view(np.uint8).ravel()
    return PackedTensor(matrix.shape, 8, True, 1, signs, np.abs(matrix), None)


def corrected(symmetric: bool = False) -> PackedTensor:
    weight, inputs, packed = made(symmetric)
    compressor, narrow = Compressor(), Precision(8, symmetric)
    return low_rank.correct(
        weight, packed, moments(inputs), RANK, lambda name, matrix: compressor.compress(name, matrix, narrow)
    )


def test_it_is_the_best_of_its_rank() -> None:
    """As numpy's whole singular value decomposition of E F^T in float64 has it (Eckart and Young)."""
    weight, inputs, packed = made(symmetric=False)
    known = moments(inputs)
    products = inputs.astype(np.float64).T @ inputs
    products += DAMPING * np.diagonal(products).mean() * np.eye(len(products))
    root = np.linalg.cholesky(products)
    lack = (weight - dequantize(packed)) @ root
    left = np.sqrt(np.square(np.linalg.svd(lack)[1][RANK:]).sum())
    found = low_rank.correct(weight, packed, known, RANK, exact)
    assert np.linalg.norm((weight - dequantize(found)) @ root) == pytest.approx(left, rel=0.01)
    assert left < 0.9 * np.linalg.norm(lack)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_product_errs_less_with_it(symmetric: bool) -> None:
    """8 bits of the narrow matrices take little of that away."""
    weight, inputs, packed = made(symmetric)
    best = low_rank.correct(weight, packed, moments(inputs), RANK, exact)
    errors = [np.linalg.norm(inputs @ (weight - dequantize(w)).T) for w in (packed, corrected(symmetric), best)]
    assert errors[1] < 0.9 * errors[0]
    assert errors[1] < 1.02 * errors[2]


@pytest.mark.parametrize("shape", [(8, 64), (64, 8), (3, 5)])
def test_narrow_matrices_and_nothing_to_correct(shape: tuple[int, int]) -> None:
    """A rank above that of the matrix; and a matrix that lost nothing, or no inputs at all."""
    rng = np.random.default_rng(4)
    weight = rng.normal(size=shape).astype(np.float32)
    inputs = rng.normal(size=(50, shape[1])).astype(np.float32)
    nothing = exact("", np.zeros(shape, np.float32))
    found = low_rank.correct(weight, nothing, moments(inputs), RANK, exact)
    assert found.low_rank is not None
    assert found.low_rank.a.shape == (min(RANK, *shape), shape[1])
    np.testing.assert_allclose(dequantize(found), weight, atol=1e-3)
    for known, lost in ((moments(inputs), exact("", weight)), (moments(inputs * 0), nothing)):
        found = low_rank.correct(dequantize(lost), lost, known, RANK, exact)
        assert np.isfinite(dequantize(found)).all()


def test_it_does_not_depend_on_the_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(parallel, "physical_cores", lambda cores=cores: cores)
        monkeypatch.setattr(low_rank, "ROWS_PER_CORE", 16)
        found.append(corrected().low_rank)
    assert found[0] is not None
    assert found[1] is not None
    assert np.array_equal(found[0].a.data, found[1].a.data)
    assert np.array_equal(found[0].b.data, found[1].b.data)


@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_and_signs_are_those_of_the_whole(symmetric: bool) -> None:
    weight = corrected(symmetric)
    assert weight.low_rank is not None
    whole = dequantize(weight)
    plain = dequantize(weight.low_rank.b) @ dequantize(weight.low_rank.a)
    assert 0.01 < np.linalg.norm(plain) / np.linalg.norm(whole) < 0.5
    for start, stop in ((0, 80), (7, 30), (70, 90)):
        np.testing.assert_allclose(rows_of(weight, start, stop), whole[start:stop], rtol=1e-5, atol=1e-5)
    unsigned = as_unsigned(weight)
    assert not unsigned.signed
    np.testing.assert_array_equal(dequantize(unsigned), whole)
    assert weight.nbytes == unsigned.nbytes > 80 * 96 // 2 + RANK * (80 + 96)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_store_gives_back_what_was_put(tmp_path: Path, symmetric: bool) -> None:
    weight = corrected(symmetric)
    store = WeightStore(tmp_path / "weights", {}, 0)
    store.put("layers.0.mlp.down.weight", weight)
    found = store["layers.0.mlp.down.weight"]
    assert isinstance(found, PackedTensor)
    np.testing.assert_array_equal(dequantize(found), dequantize(weight))
    sizes = [size for _, size in store.records["layers.0.mlp.down.weight"].constants.values()]
    assert sum(sizes) == weight.nbytes
    store.close()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("runner", [OpenVINORunner, OnnxRunner])
def test_the_graph_of_a_block_computes_it(runner: type[Runner], symmetric: bool) -> None:
    """Against the matrices as floats, in the same engine."""
    rng, block = np.random.default_rng(5), {}
    for name, shape in canonical_shapes(SPEC).items():
        if name.startswith("layers.1."):
            block[name] = rng.normal(1.0 if "norm" in name else 0.0, 0.2, shape).astype(np.float32)
    compressor, packed = Compressor(), dict[str, Weight](block)
    for name, weight in block.items():
        if weight.ndim == 2:
            base = compressor.compress(name, weight, Precision(4, symmetric, 32))
            known = moments(rng.normal(size=(200, weight.shape[1])).astype(np.float32))
            packed[name] = low_rank.correct(
                weight, base, known, RANK, lambda n, m: compressor.compress(n, m, Precision(8, symmetric))
            )
    hidden = rng.normal(size=(1, 7, SPEC.hidden_size)).astype(np.float32)
    floats = {name: dequantize(w) if isinstance(w, PackedTensor) else w for name, w in packed.items()}
    expected, found = (runner().block(weights, hidden, 1, SPEC) for weights in (floats, packed))
    assert distance(found, expected) <= FLOAT32_BOUND
