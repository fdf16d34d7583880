"""Drift: what a matrix's outputs lack before it is rounded, and the matrix moved to make up for it.

In: a float matrix (N, K), its inputs in the float model and in the compressed one, and the residual stream of both.
Out: a `Drift`; the matrix, moved. Knows nothing about how a matrix is rounded.

Earlier rounding has changed the inputs of a matrix, so that even its float weights give other outputs (as in Arai and
Ichikawa, Quantization Error Propagation, arXiv 2504.09629, and Li et al., GPTAQ, arXiv 2504.02692). Matrices that add
to the residual stream also make up for the error that the stream has by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge.export.compress.moments import Moments, inverse_of_upper
from edge.export.compress.products import Collected, Rounded, RowProduct, narrow, over_tokens
from edge.export.parallel import in_parallel
from edge.export.tensors import Float32Array

ROWS_PER_CORE = 1 << 9  # of a matrix at a time
BLOCK = 1 << 9  # columns that are solved for together
TOKENS_PER_CORE = 1 << 9  # at a time
SUMMED_TOKENS = 1 << 12  # that are multiplied at a time
PANEL = 1 << 9  # rows of a sum over tokens on one core at a time


@dataclass(frozen=True)
class Drift:
    """Sums over tokens, of inputs x (T, K) of a matrix in the compressed model and what is lacking there."""

    sums: Float32Array  # y^T x (N, K), where y (T, N) is what outputs lack; or d^T x (K, K), where d (T, K) is ...
    of_inputs: bool  # ... what the inputs lack, if that is all that the outputs lack


def find_drift(weight: Float32Array, floats: Float32Array, inputs: Float32Array, stream: Float32Array | None) -> Drift:
    """What outputs of a matrix lack for these inputs (T, K), which the float model has as `floats`.

    stream: the residual stream of both models, (2 n, T, N), for matrices that add to it.
    """
    n, k = weight.shape
    if stream is None and n > k:  # fewer products, here and in `move`, and no (T, N)
        return Drift(_over_tokens(lambda rows: floats[rows] - inputs[rows], inputs, (k, k)), of_inputs=True)

    half = 0 if stream is None else len(stream) // 2
    product = RowProduct(weight)

    def lack(rows: slice) -> Float32Array:
        more = product(floats[rows] - inputs[rows])  # (T, N)
        if stream is not None:
            more += stream[:half].reshape(-1, n)[rows] - stream[half:].reshape(-1, n)[rows]
        return more

    return Drift(_over_tokens(lack, inputs, (n, k)), of_inputs=False)


def move(weight: Float32Array, inputs: Moments, drift: Drift) -> Float32Array:
    """A matrix (N, K), moved so that its outputs for inputs with these moments move by the drift. Overwrites it."""
    found = _solved(drift.sums, inputs)
    product = RowProduct(np.ascontiguousarray(found.T)) if drift.of_inputs else None
    moved = found if product is None else np.empty(weight.shape, np.float32)

    def add(start: int) -> None:
        rows = slice(start, start + ROWS_PER_CORE)
        np.add(weight[rows], found[rows] if product is None else product(weight[rows]), out=moved[rows])

    in_parallel(add, range(0, len(weight), ROWS_PER_CORE))
    return moved


def _over_tokens(make: Callable[[slice], Float32Array], inputs: Float32Array, shape: tuple[int, int]) -> Float32Array:
    """y^T x of this shape for inputs x (T, K) and what is made of the same tokens, summed in a fixed order."""
    m, k = shape
    total = np.zeros(shape, np.float32)
    for first in range(0, len(inputs), SUMMED_TOKENS):
        stop = min(first + SUMMED_TOKENS, len(inputs))
        pieces = [slice(start, min(start + TOKENS_PER_CORE, stop)) for start in range(first, stop, TOKENS_PER_CORE)]
        made = np.empty((stop - first, m), np.float32)

        def fill(rows: slice, made: Float32Array = made, first: int = first) -> None:
            made[rows.start - first : rows.stop - first] = make(rows)

        in_parallel(fill, pieces)
        right = Rounded(inputs[first:stop], narrow=narrow(m * k))

        def add(start: int, made: Float32Array = made, right: Rounded = right) -> None:
            total[start : start + PANEL] += over_tokens(made[:, start : start + PANEL], right)

        in_parallel(add, range(0, m, PANEL))
    return total


def _solved(sums: Float32Array, inputs: Moments) -> Float32Array:
    """The sums (n, K) times the inverse of the moments F^T F, in the place of the sums.

    Some columns of all rows before the next: so each part of F is rounded once.
    """
    factor, order = inputs.factor, inputs.order
    k, is_narrow = len(factor), narrow(factor.size)
    pieces = [sums[start : start + ROWS_PER_CORE] for start in range(0, len(sums), ROWS_PER_CORE)]

    def columns(piece: Float32Array) -> Collected:
        """(K, rows) in the memory of the piece, which for all rows is a quarter of a gigabyte."""
        turned = piece.reshape(k, -1)
        turned[...] = np.take(piece, order, axis=1).T
        return Collected(turned, narrow=is_narrow)

    solved = in_parallel(columns, pieces)
    blocks = [slice(start, min(start + BLOCK, k)) for start in range(0, k, BLOCK)]
    corners = in_parallel(lambda block: inverse_of_upper(factor[block, block]), blocks)

    def solve(block: slice, corner: Float32Array, known: slice, left: Float32Array) -> None:
        """left (R, BLOCK): what known columns have in common with the block's."""
        rounded = Rounded(left, narrow=is_narrow)

        def of_rows(values: Collected) -> None:
            wanted = values.rows[block]
            if len(left):
                wanted -= values.times(rounded, known)
            values.rows[block] = corner @ wanted
            values.found(block)

        in_parallel(of_rows, solved)

    for block, corner in zip(blocks, corners, strict=True):
        known = slice(0, block.start)
        solve(block, corner.T, known, factor[known, block])
    for block, corner in zip(reversed(blocks), reversed(corners), strict=True):
        known = slice(block.stop, k)
        solve(block, corner, known, factor[block, known].T)
    for piece, values in zip(pieces, solved, strict=True):
        piece[:, order] = values.rows.T.copy()
    return sums
