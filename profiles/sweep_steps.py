"""The steps of a sweep, and where they run: one at a time in a process of this machine, unless there is a cluster.

In: a `Step` with its task. Out: a `Done` for each, with where it ran. Knows nothing about which steps make a sweep, and
what a task is: `worker.py` does them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from edge.profiles import processes
from edge.profiles.machine_record import Place
from edge.profiles.processes import Outcome
from edge.profiles.sweep_plan import Cell
from edge.runtime.cores import own_cores
from edge.runtime.errors import ProfileError

StepKind = Literal["reference", "export", "measure", "accuracy", "speed"]  # measure: accuracy and speed in one process
TellStep = Callable[["Step", str, int, int], None]  # phase, done, total


@dataclass(frozen=True)
class Step:
    """A piece of work that one process does."""

    kind: StepKind
    name: str  # for people; unique in a sweep
    task: Mapping[str, Any]  # JSON, as profiles/worker.py takes it; paths are absolute
    recipe: str = ""  # that is exported or measured
    cell: Cell | None = None  # that is measured


@dataclass(frozen=True, slots=True)
class Done:
    """A step that has ended."""

    step: Step
    outcome: Outcome | None = None  # None if it failed
    error: str = ""
    place: Place | None = None  # None: the machine that the sweep runs on


class Executor(AbstractContextManager["Executor"], Protocol):
    """Runs steps. What is running when its context ends is ended."""

    apart: bool  # whether accuracy and speed are steps of their own, so that accuracies can be measured side by side

    @property
    def has_room(self) -> bool:
        """Whether another step may be started before one has ended."""

    @property
    def is_timing_here(self) -> bool:
        """Whether a speed is being measured on this machine, which other work would falsify."""

    def start(self, step: Step) -> None:
        """Take a step, to be run as soon as may be. A speed is measured when all other steps have ended."""

    def next(self, tell: TellStep) -> Done:
        """Wait until a step ends; any of those that were started. tell: of their progress meanwhile."""


class OneProcess:
    """An executor on this machine: each step in a process of its own, none beside another."""

    apart = False
    is_timing_here = False  # between two steps, which is when anybody can ask

    def __init__(self, cores: int | None) -> None:
        """cores: that each step may use; None: all."""
        self._cores = cores
        self._step: Step | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._step = None

    @property
    def has_room(self) -> bool:
        return self._step is None

    def start(self, step: Step) -> None:
        assert self._step is None, "one step at a time"
        self._step = step

    def next(self, tell: TellStep) -> Done:
        step, self._step = self._step, None
        assert step is not None, "a step was started"
        try:
            with own_cores(self._cores):
                return Done(step, processes.run_step(step.task, lambda *state: tell(step, *state)))
        except ProfileError as error:
            return Done(step, error=str(error))
