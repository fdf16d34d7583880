"""Work that falls into independent pieces, on all cores.

In: a function and its arguments. Out: its results. Each piece is computed on one core (numpy releases Python's lock),
so that results do not depend on the number of cores, as those of a BLAS with several threads do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

from edge.runtime.machine import physical_cores

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(function: Callable[[T], R], pieces: Iterable[T]) -> list[R]:
    """The function's results, in the order of the pieces. Call it with BLAS limited to one thread."""
    with ThreadPoolExecutor(physical_cores(), "parallel") as threads:  # None, if not known: Python's own choice
        return list(threads.map(function, pieces))


def one_blas_thread() -> AbstractContextManager[object]:
    """Limit BLAS to one thread for a while. Plans are made, and profiles read, without the package for this."""
    from threadpoolctl import threadpool_limits

    limit: AbstractContextManager[object] = threadpool_limits(1, "blas")
    return limit
