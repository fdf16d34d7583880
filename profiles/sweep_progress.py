"""How far a sweep is: the steps that are done and to do, and how long the rest will take.

In: steps by kind, when each begins and ends, and which share of it is done. Out: a `SweepProgress`. Knows nothing about
what the steps do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from edge.profiles.record import Failure, Row


@dataclass(frozen=True, slots=True)
class SweepProgress:
    """How far a sweep is."""

    step: str  # like "reference", "export int8-asym" or "int8-asym/onnx"
    phase: str  # of the step: "reference", "export", "load", "speed", "accuracy"
    share: float  # of the step, 0 to 1
    steps_done: int
    num_steps: int
    seconds_left: float | None  # estimated; None while nothing is known
    row: Row | None = None  # of a cell that has just finished
    failure: Failure | None = None  # of a cell that has just failed


class Steps:
    """Steps done and to do, and how long they took: a step is expected to take the average of its kind."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self._left = list(kinds)
        self._total = len(kinds)
        self._seconds: dict[str, list[float]] = {}
        self._started: float | None = None

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """A step of this kind is running; one that fails counts as done."""
        self._started = time.perf_counter()
        try:
            yield
            self._seconds.setdefault(kind, []).append(time.perf_counter() - self._started)
        finally:
            self._started = None
            self._left.remove(kind)

    def skip(self, kind: str) -> None:
        """Drop a step that turns out to be impossible."""
        self._left.remove(kind)

    def progress(
        self, step: str, phase: str, share: float, row: Row | None = None, failure: Failure | None = None
    ) -> SweepProgress:
        """The progress when `share` of the running step is done."""
        done = self._total - len(self._left)
        return SweepProgress(step, phase, share, done, self._total, self._seconds_left(share), row, failure)

    def _seconds_left(self, share: float) -> float | None:
        took = [seconds for found in self._seconds.values() for seconds in found]
        if not took:
            return None
        means = {kind: sum(found) / len(found) for kind, found in self._seconds.items()}
        overall = sum(took) / len(took)
        left = [means.get(kind, overall) for kind in self._left]
        under_way = 0.0
        if self._started is not None and left:
            elapsed = time.perf_counter() - self._started
            whole = elapsed / share if share > 0.05 else max(left[0], elapsed)
            under_way = whole - elapsed
            left = left[1:]
        return under_way + sum(left)
