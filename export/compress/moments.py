"""Moments of a matrix's inputs: what rounding needs to know about them.

In: inputs (T, K). Out: `Moments`: x^T x, damped and factored. Knows nothing about weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.export.compress.products import add_moments
from edge.export.parallel import in_parallel
from edge.export.tensors import Float32Array
from edge.runtime.errors import RecipeError

DAMPING = 0.2  # share of the mean moment that is added to each, so that few tokens do not decide everything
MOST_DAMPING = 20.0
CORNER = 1 << 9  # columns of the factor that are found together
PANEL = 1 << 8  # columns that are mirrored together
SUMMED_TOKENS = 1 << 11  # that the moments are summed over at a time


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


def _products(inputs: Float32Array, order: npt.NDArray[np.intp], shrink: Float32Array) -> Float32Array:
    """x^T x (K, K) for inputs x (T, K) whose columns are put into this order and multiplied by shrink (K,)."""
    tokens, k = inputs.shape
    products = np.zeros((k, k), np.float32)
    for first in range(0, tokens, SUMMED_TOKENS):
        piece = np.take(inputs[first : first + SUMMED_TOKENS], order, axis=1)  # indexing takes three times as long
        piece *= shrink[order]
        add_moments(products, piece)
    _mirror(products)
    return products


def _mirror(square: Float32Array) -> None:
    """Copy what is above the diagonal to below it."""
    for start in range(0, len(square), PANEL):
        stop = start + PANEL
        square[stop:, start:stop] = square[start:stop, stop:].T
        corner = square[start:stop, start:stop]
        corner[...] = np.triu(corner) + np.triu(corner, 1).T


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
        inverse = inverse_of_upper(factor).T

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


def inverse_of_upper(square: Float32Array) -> Float32Array:
    """The inverse of what is on and above the diagonal of a small part of the factor."""
    return np.linalg.inv(np.triu(square).astype(np.float64)).astype(np.float32)
