"""How fast this machine reads memory, measured: what decides how fast a model writes.

In: nothing. Out: GB/s that one thread and all cores read together. Takes about a second, and 64 MB a core.

Each thread adds up an array of its own, larger than its share of any usual cache, with numpy alone, which lets other
threads run meanwhile. The best of several rounds counts: whatever else the machine does makes a round slower.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.runtime.machine import logical_processors, physical_cores

METHOD = "sums of 64 MB of integers a core in numpy, all cores at once, best of rounds for half a second"
ARRAY_BYTES = 64 << 20
MOST_THREADS = 64
ROUNDS_S = 0.5
LEAST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """GB/s that were read."""

    one_thread_gbs: float
    all_cores_gbs: float
    threads: int
    method: str = METHOD


def measured_bandwidth(seconds: float = ROUNDS_S, array_bytes: int = ARRAY_BYTES) -> Bandwidth:
    """Read memory for about twice so many seconds. Raises MemoryError."""
    arrays = _written(array_bytes)
    threads = len(arrays)
    one = _best_seconds(seconds, arrays[:1])
    every = _best_seconds(seconds, arrays) if threads > 1 else one
    one_gbs, every_gbs = array_bytes / one / 1e9, threads * array_bytes / every / 1e9
    return Bandwidth(round(one_gbs, 1), round(max(one_gbs, every_gbs), 1), threads)  # other work may hold a core


def all_cores_gbs(seconds: float = ROUNDS_S, array_bytes: int = ARRAY_BYTES) -> float:
    """GB/s that all cores read together, measured for so many seconds. Raises MemoryError."""
    arrays = _written(array_bytes)
    return round(len(arrays) * array_bytes / _best_seconds(seconds, arrays) / 1e9, 1)


def _written(array_bytes: int) -> list[npt.NDArray[np.int64]]:
    """An array for each core, not of zeros, which would all be one page."""
    threads = min(physical_cores() or logical_processors(), MOST_THREADS)
    return [np.ones(array_bytes // 8, np.int64) for _ in range(threads)]


def _best_seconds(seconds: float, arrays: list[npt.NDArray[np.int64]]) -> float:
    """The fewest seconds in which all of them were read at once."""
    best, ends, rounds = float("inf"), time.perf_counter() + seconds, 0
    with ThreadPoolExecutor(len(arrays), "bandwidth") as pool:
        while rounds < LEAST_ROUNDS or time.perf_counter() < ends:
            started = time.perf_counter()
            list(pool.map(np.add.reduce, arrays))
            best, rounds = min(best, time.perf_counter() - started), rounds + 1
    return max(best, 1e-9)
