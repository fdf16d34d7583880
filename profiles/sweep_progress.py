"""How far a sweep is: the steps that are done and to do, and how long the rest will take.

In: steps by kind, when each begins and ends, and which share of it is done. Out: a `SweepProgress`. Knows nothing about
what the steps do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from edge.profiles.record import Failure, Row


@dataclass(frozen=True, slots=True)
class SweepProgress:
    """How far a sweep is."""

    step: str  # like "reference", "export int8-asym" or "int8-asym/onnx"
    phase: str  # of the step: "reference", "export", "load", "speed", "accuracy"
    share: float  # that is done of the steps that are running, in steps
    steps_done: int
    num_steps: int
    seconds_left: float | None  # estimated; None while nothing is known
    row: Row | None = None  # of a cell that has just been measured
    failure: Failure | None = None  # of a cell that has just failed
    is_timing: bool = False  # whether other work on this machine would falsify a speed that is being measured


@dataclass(slots=True)
class _Running:
    kind: str
    started: float
    share: float = 0.0

    def seconds_left(self, mean: float) -> float:
        elapsed = time.perf_counter() - self.started
        whole = elapsed / self.share if self.share > 0.05 else max(mean, elapsed)
        return whole - elapsed


class Steps:
    """Steps done and to do, and how long they took: a step is expected to take the average of its kind."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self._waiting = list(kinds)
        self._total = len(kinds)
        self._seconds: dict[str, list[float]] = {}
        self._running: dict[str, _Running] = {}

    def begin(self, name: str, kind: str) -> None:
        """A step of this kind is running now."""
        self._waiting.remove(kind)
        self._running[name] = _Running(kind, time.perf_counter())

    def share(self, name: str, share: float) -> None:
        """So much of a running step is done, 0 to 1."""
        self._running[name].share = share

    def end(self, name: str, seconds: float | None) -> None:
        """A step has ended, after so many seconds of work; None: it failed, and counts as done."""
        kind = self._running.pop(name).kind
        if seconds is not None:
            self._seconds.setdefault(kind, []).append(seconds)

    def skip(self, kind: str) -> None:
        """Drop a step that turns out to be impossible."""
        self._waiting.remove(kind)

    def progress(
        self,
        step: str,
        phase: str,
        row: Row | None = None,
        failure: Failure | None = None,
        *,
        is_timing: bool = False,
    ) -> SweepProgress:
        share = sum(running.share for running in self._running.values())
        done = self._total - len(self._waiting) - len(self._running)
        return SweepProgress(step, phase, share, done, self._total, self._seconds_left(), row, failure, is_timing)

    def _seconds_left(self) -> float | None:
        took = [seconds for found in self._seconds.values() for seconds in found]
        if not took:
            return None
        means = {kind: sum(found) / len(found) for kind, found in self._seconds.items()}
        overall = sum(took) / len(took)
        running = [step.seconds_left(means.get(step.kind, overall)) for step in self._running.values()]
        left = sum(means.get(kind, overall) for kind in self._waiting) + sum(running)
        return left / max(len(running), 1)  # as many side by side as now
