"""GPTQ: rounding a matrix so that its product stays as it was, rather than its weights.

In: a float matrix (N, K), moments of the inputs that it will meet, and a `Precision` of 2 or 4 bits. Out: a
`PackedTensor` in NNCF's layout; or the float matrix, moved so that its outputs are what they should be. Knows nothing
about graphs or where the inputs come from.

Columns are rounded one after the other, those that matter most first, and what one column lost is made up for by those
still to come (Frantar et al., GPTQ, arXiv 2210.17323; the order by the diagonal is its authors' later `act_order`). It
is written as rounding to the nearest plane of the lattice that the Cholesky factor spans (Chen et al., The Geometry of
LLM Quantization, arXiv 2507.18553): the same result, without the inverse. Groups get their scales beforehand, from
clipped ranges, with every column's error weighted by its moment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.export.compress.precision import Precision
from edge.export.compress.rounding import limits, middles, ranges, restored, steps
from edge.export.parallel import in_parallel
from edge.export.tensors import Float32Array, PackedTensor, pack
from edge.runtime.errors import RecipeError

DAMPING = 0.2  # share of the mean moment that is added to each, so that few tokens do not decide everything
MOST_DAMPING = 20.0
CLIPS = np.linspace(1.0, 0.6, 13, dtype=np.float32)  # shares of a group's range to try
COARSE_CLIPS = np.linspace(1.0, 0.3, 22, dtype=np.float32)  # with four integers in all, the far ones cost more
BLOCK = 128  # columns whose losses are passed on together, as one matrix product
CHUNK = 1 << 17  # weights whose clips are tried together: their copies stay in a core's cache
ROWS_PER_CORE = 1 << 9  # of a matrix at a time
CORNER = 1 << 9  # columns of the factor that are found together
PANEL = 1 << 8  # columns of the moments on one core at a time
SUMMED_TOKENS = 1 << 11  # that the moments are summed over at a time
SMALLEST_SCALE = np.float32(2.0**-24)  # the smallest float16 above 0


@dataclass(frozen=True)
class Moments:
    """What rounding needs to know about inputs: x^T x, factored."""

    importance: Float32Array  # (K,), its diagonal
    order: npt.NDArray[np.intp]  # of columns in the factor: the last is rounded first, so the heaviest comes last
    factor: Float32Array  # (K, K), of the damped moments; what is below its diagonal must not be used


def moments(inputs: Float32Array, scales: Float32Array | None = None) -> Moments:
    """Moments of inputs x (T, K), divided by scales (K,) if given. Raises RecipeError where x is not finite."""
    shrink: Float32Array = np.ones(inputs.shape[1], np.float32) if scales is None else np.float32(1) / scales
    importance = np.einsum("tk,tk->k", inputs, inputs) * np.square(shrink)
    order = np.argsort(importance, kind="stable")
    return Moments(importance, order, _factor(_products(inputs, order, shrink)))


def move(weight: Float32Array, inputs: Moments, drift: Float32Array) -> Float32Array:
    """A (N, K) matrix moved so that its outputs move by the drift, which it overwrites.

    drift: (N, K), y^T x, where y (T, N) is what the outputs for inputs x (T, K) lack.
    """

    corners = _inverse_corners(inputs.factor)

    def move_rows(start: int) -> None:
        rows = slice(start, start + ROWS_PER_CORE)
        drift[rows] = weight[rows] + _best_move(drift[rows], inputs.factor, corners, inputs.order)

    in_parallel(move_rows, range(0, len(weight), ROWS_PER_CORE))
    return drift


def quantize(weight: Float32Array, inputs: Moments, precision: Precision) -> PackedTensor:
    """Round a (N, K) matrix to few bits for inputs x (T, K) with these moments."""
    assert precision.is_narrow, precision
    n, k = weight.shape
    group = precision.group_size or k
    importance, order, factor = inputs.importance, inputs.order, inputs.factor
    scale, zero = np.empty((n, k // group), np.float32), np.empty((n, k // group), np.int8)
    values = np.empty((n, k), np.int8)

    def round_rows(start: int) -> None:
        chosen = slice(start, start + ROWS_PER_CORE)
        rows = weight[chosen]
        found, middle = _scales(rows, importance, precision)
        columns = np.ascontiguousarray(rows[:, order].T)
        integers = _round_columns(columns, factor, order // group, found.T.copy(), middle.T.copy(), precision)
        scale[chosen], zero[chosen] = found, middle
        values[chosen, order] = integers.T

    in_parallel(round_rows, range(0, n, ROWS_PER_CORE))
    packed_zero = None if precision.symmetric else pack(zero.reshape(-1), precision.bits)
    data = pack(values.reshape(-1), precision.bits)
    return PackedTensor((n, k), precision.bits, precision.symmetric, group, data, scale.astype(np.float16), packed_zero)


def _products(inputs: Float32Array, order: npt.NDArray[np.intp], shrink: Float32Array) -> Float32Array:
    """x^T x (K, K) for inputs x (T, K) whose columns are put into this order and multiplied by shrink (K,)."""
    tokens, k = inputs.shape
    products = np.zeros((k, k), np.float32)
    for first in range(0, tokens, SUMMED_TOKENS):
        piece = inputs[first : first + SUMMED_TOKENS, order]
        piece *= shrink[order]

        def multiply(start: int, piece: Float32Array = piece) -> None:
            stop = start + PANEL
            products[start:stop, start:] += piece[:, start:stop].T @ piece[:, start:]

        in_parallel(multiply, range(0, k, PANEL))
    _mirror(products)
    return products


def _mirror(square: Float32Array) -> None:
    """Copy what is above the diagonal to below it."""
    for start in range(0, len(square), PANEL):
        stop = start + PANEL
        square[stop:, start:stop] = square[start:stop, stop:].T
        corner = square[start:stop, start:stop]
        corner[...] = np.triu(corner) + np.triu(corner, 1).T


def _scales(
    rows: Float32Array, importance: Float32Array, precision: Precision
) -> tuple[Float32Array, npt.NDArray[np.int8]]:
    """Scale and zero point of every group of some rows, (n, K / group) each."""
    n, k = rows.shape
    group = precision.group_size or k
    weights = importance.reshape(1, k // group, group) / max(float(importance.mean()), 1e-30)
    step = max(CHUNK // k, 1)
    found = [
        _best_clip(rows[start : start + step].reshape(-1, k // group, group), weights, precision)
        for start in range(0, n, step)
    ]
    return np.concatenate([scale for scale, _ in found]), np.concatenate([zero for _, zero in found])


def _best_clip(
    rows: Float32Array, weights: Float32Array, precision: Precision
) -> tuple[Float32Array, npt.NDArray[np.int8]]:
    """Scale and zero point for rows (n, groups, group), from the clipped range that errs least."""
    least, most = ranges(rows)  # (n, groups, 1), as all below but `lost`
    best = np.full(least.shape, np.inf, np.float32)
    scale, zero = np.empty_like(best), np.zeros(best.shape, np.float32)
    for clip in COARSE_CLIPS if precision.bits == 2 else CLIPS:
        step = _representable(steps(least, most, precision, clip))
        middle = middles(least, step, precision, clip)
        lost = restored(rows, step, middle, precision)
        lost -= rows
        np.square(lost, out=lost)
        error = np.einsum("ngk,ngk->ng", lost, np.broadcast_to(weights, lost.shape))[..., None]
        better = error < best
        best, scale, zero = (np.where(better, new, old) for new, old in ((error, best), (step, scale), (middle, zero)))
    return scale[..., 0], zero[..., 0].astype(np.int8)


def _representable(scale: Float32Array) -> Float32Array:
    """The float16 that will be stored, in float32; never 0."""
    stored = scale.astype(np.float16).astype(np.float32)
    return np.where(stored == 0, SMALLEST_SCALE, stored).astype(np.float32)


def _factor(moments: Float32Array) -> Float32Array:
    """Upper F (K, K) with F^T F = the moments, which it overwrites. Raises RecipeError.

    What is below its diagonal must not be used. The moments are damped as much as it takes; memory holds one matrix of
    this size (GLM-4-9B's largest has 750 MB), so what it takes to try again is kept below the diagonal.
    """
    diagonal = np.diagonal(moments).copy()
    mean = float(diagonal.mean(dtype=np.float64))
    if not np.isfinite(mean):
        raise RecipeError("calibration gave activations that are NaN or infinite; is the checkpoint damaged?")
    damping = DAMPING
    while True:
        moments[np.diag_indices_from(moments)] = diagonal + np.float32(damping * (mean or 1.0))
        if _factored(moments):
            return moments
        damping *= 10  # rounding made small eigenvalues negative
        if damping > MOST_DAMPING:
            raise RecipeError("calibration gave activations that no damping makes regular; use more text")
        _mirror(moments.T)


def _factored(square: Float32Array) -> bool:
    """Replace what is on and above the diagonal by the factor, on all cores; what is below stays. False: not possible.

    LAPACK does the corners alone: it would keep one core busy for 11 s with GLM-4-9B's largest.
    """
    from scipy.linalg.lapack import spotrf  # imported here: recipes are listed without it

    k = len(square)
    upper = np.triu(np.ones((CORNER, CORNER), bool))
    for start in range(0, k, CORNER):
        stop = min(start + CORNER, k)
        corner = square[start:stop, start:stop]
        factor, failed = spotrf(np.triu(corner), lower=0, clean=1)
        if failed:
            return False
        np.copyto(corner, factor, where=upper[: stop - start, : stop - start])
        inverse = np.linalg.inv(factor.astype(np.float64)).T.astype(np.float32)

        def solve(first: int, start: int = start, stop: int = stop, inverse: Float32Array = inverse) -> None:
            square[start:stop, first : first + CORNER] = inverse @ square[start:stop, first : first + CORNER]

        def subtract(first: int, start: int = start, stop: int = stop) -> None:
            """What these rows have in common with those below."""
            rows = slice(first, min(first + CORNER, k))
            size = rows.stop - first
            found = square[start:stop, rows].T @ square[start:stop, first:]
            square[rows, rows.stop :] -= found[:, size:]
            rest = square[rows, rows]
            np.subtract(rest, found[:, :size], out=rest, where=upper[:size, :size])

        later = range(stop, k, CORNER)
        in_parallel(solve, later)
        in_parallel(subtract, later)
    return True


def _inverse_corners(factor: Float32Array) -> list[Float32Array]:
    """The inverses of the factor's blocks on its diagonal, from the first to the last."""
    starts = range(0, len(factor), BLOCK)
    corners = (np.triu(factor[start : start + BLOCK, start : start + BLOCK]) for start in starts)
    return [np.linalg.inv(corner.astype(np.float64)).astype(np.float32) for corner in corners]


def _best_move(
    drift: Float32Array, factor: Float32Array, corners: list[Float32Array], order: npt.NDArray[np.intp]
) -> Float32Array:
    """What to add to weights (n, K) so that outputs move by the drift: the drift times the inverse of F^T F."""
    values = np.ascontiguousarray(drift[:, order].T)  # (K, n)
    k = len(values)
    for start in range(0, k, BLOCK):
        stop = start + BLOCK
        if start:
            values[start:stop] -= factor[:start, start:stop].T @ values[:start]
        values[start:stop] = corners[start // BLOCK].T @ values[start:stop]
    for start in reversed(range(0, k, BLOCK)):
        stop = min(start + BLOCK, k)
        if stop < k:
            values[start:stop] -= factor[start:stop, stop:] @ values[stop:]
        values[start:stop] = corners[start // BLOCK] @ values[start:stop]
    moved = np.empty(drift.shape, np.float32)
    moved[:, order] = values.T
    return moved


def _round_columns(
    columns: Float32Array,
    factor: Float32Array,
    groups: npt.NDArray[np.intp],
    scale: Float32Array,
    zero: npt.NDArray[np.int8],
    precision: Precision,
) -> npt.NDArray[np.int8]:
    """Integers (K, N) for columns (K, N), rounded from the last to the first; scale and zero are (K / group, N).

    What is rounded for column i is w_i + sum over j > i of F_ij / F_ii (w_j - rounded w_j).
    """
    k, n = columns.shape
    diagonal = np.diagonal(factor)[:, None]
    low, high = limits(precision)
    lost = np.empty((k, n), np.float32)  # what rounding took from each column
    integers = np.empty((k, n), np.int8)
    for stop in range(k, 0, -BLOCK):
        start = max(stop - BLOCK, 0)
        target = columns[start:stop].copy()
        shares = factor[start:stop, start:stop] / diagonal[start:stop]
        if stop < k:
            target += (factor[start:stop, stop:] @ lost[stop:]) / diagonal[start:stop]
        for i in range(stop - 1, start - 1, -1):
            step, middle = scale[groups[i]], zero[groups[i]]
            rounded = np.clip(np.rint(target[i - start] / step) + middle, low, high)
            integers[i] = rounded
            lost[i] = columns[i] - (rounded - middle) * step
            if i > start:
                target[: i - start] += shares[: i - start, i - start, None] * lost[i]
    return integers
