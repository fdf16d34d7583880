"""Several runs through the same stage side by side, so that each matrix is unpacked once for all of them.

In: functions that compute a stage with the product that they are given. Out: their results, to the bit those of one run
after the other. Knows nothing about what a stage is. Unpacking takes longer than the products with a few tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from edge.export.parallel import in_parallel
from edge.export.tensors import Float32Array, Weight, rows_of

R = TypeVar("R")
Multiply = Callable[[Weight, Float32Array], Float32Array]  # (N, K) and (K, T) -> (N, T)

CHUNK_ELEMENTS = 1 << 19  # of a matrix in float32 at a time: 2 MB, which stay in a core's cache


def multiply(matrix: Weight, columns: Float32Array) -> Float32Array:
    """(N, K) times (K, T), some rows of the matrix at a time."""
    return multiply_each(matrix, [columns])[0]


def multiply_each(matrix: Weight, each: Sequence[Float32Array]) -> list[Float32Array]:
    """(N, K) times each (K, T)."""
    n, k = matrix.shape
    step = max(CHUNK_ELEMENTS // k, 1)
    found = [np.empty((n, columns.shape[1]), np.float32) for columns in each]

    def rows(start: int) -> None:
        some = rows_of(matrix, start, start + step)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told by who reads it
            for columns, y in zip(each, found, strict=True):
                np.matmul(some, columns, out=y[start : start + step])

    if len(each) == 1:
        for start in range(0, n, step):
            rows(start)
    else:
        in_parallel(rows, range(0, n, step))
    return found


def together(runs: Sequence[Callable[[Multiply], R]]) -> list[R]:
    """The results of runs that all multiply by the same matrices in the same order. Raises what a run raises."""
    columns: list[Float32Array | None] = [None] * len(runs)
    matrices: list[Weight | None] = [None]
    products: list[Float32Array] = []

    def compute() -> None:
        """Called by the last one to arrive, while the others wait."""
        matrix, given = matrices[0], [one for one in columns if one is not None]
        assert matrix is not None
        assert len(given) == len(runs)
        products[:] = multiply_each(matrix, given)

    barrier = threading.Barrier(len(runs), compute)

    def run(place: int) -> R:
        def wait_for_all(matrix: Weight, own: Float32Array) -> Float32Array:
            matrices[0], columns[place] = matrix, own
            barrier.wait()
            return products[place]

        try:
            return runs[place](wait_for_all)
        except BaseException:
            barrier.abort()  # the others would wait forever
            raise

    with ThreadPoolExecutor(len(runs), "together") as threads:
        futures = [threads.submit(run, place) for place in range(len(runs))]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]
