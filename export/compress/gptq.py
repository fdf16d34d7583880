"""GPTQ: rounding a matrix so that its product stays as it was, rather than its weights.

In: a float matrix (N, K), moments of the inputs that it will meet, and a `Precision` of 2 or 4 bits. Out: a
`PackedTensor` in NNCF's layout. Knows nothing about graphs or where the inputs come from.

Columns are rounded one after the other, those that matter most first, and what one column lost is made up for by those
still to come (Frantar et al., GPTQ, arXiv 2210.17323; the order by the diagonal is its authors' later `act_order`). It
is written as rounding to the nearest plane of the lattice that the Cholesky factor spans (Chen et al., The Geometry of
LLM Quantization, arXiv 2507.18553): the same result, without the inverse. Groups get their scales beforehand, from
clipped ranges, with every column's error weighted by its moment.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge.export.compress.moments import Moments
from edge.export.compress.precision import Precision
from edge.export.compress.rounding import limits, middles, ranges, restored, steps
from edge.export.parallel import in_parallel
from edge.export.tensors import Float32Array, PackedTensor, pack

CLIPS = np.linspace(1.0, 0.6, 13, dtype=np.float32)  # shares of a group's range to try
COARSE_CLIPS = np.linspace(1.0, 0.3, 22, dtype=np.float32)  # with four integers in all, the far ones cost more
BLOCK = 128  # columns whose losses are passed on together, as one matrix product
FEW = 16  # columns whose losses are passed on together to those of the same block
CHUNK = 1 << 17  # weights whose clips are tried together: their copies stay in a core's cache
ROWS_PER_CORE = 1 << 10  # of a matrix at a time
SMALLEST_SCALE = np.float32(2.0**-24)  # the smallest float16 above 0


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
        columns = np.ascontiguousarray(np.take(rows, order, axis=1).T)
        integers = _round_columns(columns, factor, order // group, found.T.copy(), middle.T.copy(), precision)
        scale[chosen], zero[chosen] = found, middle
        values[chosen, order] = integers.T

    in_parallel(round_rows, range(0, n, ROWS_PER_CORE))
    packed_zero = None if precision.symmetric else pack(zero.reshape(-1), precision.bits)
    data = pack(values.reshape(-1), precision.bits)
    return PackedTensor((n, k), precision.bits, precision.symmetric, group, data, scale.astype(np.float16), packed_zero)


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
    centers = zero.astype(np.float32)
    lost = np.empty((k, n), np.float32)  # what rounding took from each column
    integers = np.empty((k, n), np.int8)
    rounded = np.empty(n, np.float32)
    for stop in range(k, 0, -BLOCK):
        start = max(stop - BLOCK, 0)
        target = columns[start:stop].copy()
        shares = factor[start:stop, start:stop] / diagonal[start:stop]
        if stop < k:
            target += (factor[start:stop, stop:] @ lost[stop:]) / diagonal[start:stop]
        for end in range(stop - start, 0, -FEW):
            begin = max(end - FEW, 0)
            for i in range(end - 1, begin - 1, -1):
                step, middle = scale[groups[start + i]], centers[groups[start + i]]
                np.divide(target[i], step, out=rounded)
                np.rint(rounded, out=rounded)
                rounded += middle
                np.clip(rounded, low, high, out=rounded)
                integers[start + i] = rounded
                rounded -= middle
                rounded *= step
                np.subtract(columns[start + i], rounded, out=lost[start + i])
                if i > begin:
                    target[begin:i] += shares[begin:i, i, None] * lost[start + i]
            target[:begin] += shares[:begin, begin:end] @ lost[start + begin : start + end]
    return integers
