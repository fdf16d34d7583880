"""What a cluster does for a sweep: it tells its nodes, runs tasks on them, and says what became of each.

In: tasks with what they need. Out: a `Report` of each, or that it was lost. `ray_pool.py` is the real one; the tests of
order and failure script one. Knows nothing about sweeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NewType, Protocol

from edge.profiles.machine_record import MachineRecord
from edge.profiles.processes import Outcome

Handle = NewType("Handle", int)  # of a task that was submitted


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node says of itself."""

    node_id: str
    machine: MachineRecord
    boot: str  # of the system's kernel: nodes with the same are one machine
    unfit: str = ""  # why it cannot take part, if it cannot


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive, with all that it has for tasks."""

    node_id: str
    name: str  # for people; unique
    cpus: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Work:
    """A task, and what the scheduler is told of it."""

    name: str  # for people, and for its progress
    task: Mapping[str, Any]  # JSON, as profiles/worker.py takes it
    cpus: float
    memory_bytes: int
    cores: int | None  # that it computes on; None: all of the node's
    node_ids: tuple[str, ...]  # the nodes that may run it


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a task that ran to its end."""

    facts: Facts
    outcome: Outcome | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """A task whose node or process has gone."""

    reason: str


Ended = tuple[Handle, Report | Lost]


class Pool(Protocol):
    """A cluster."""

    def nodes(self) -> Sequence[Node]:
        """The nodes that are alive and may run tasks, in the same order every time."""

    def look(self, nodes: Sequence[Node]) -> Mapping[str, Facts]:
        """Ask nodes about themselves; by node_id. One that does not answer is unfit."""

    def submit(self, work: Work) -> Handle: ...

    def wait(self, seconds: float) -> list[Ended]:
        """The tasks that have ended, as soon as there is one; none after so many seconds."""

    def progress(self) -> Mapping[str, tuple[str, int, int]]:
        """What has been told since it was asked last: phase, done and total, by the name of the task."""

    def cancel(self, handles: Sequence[Handle]) -> None:
        """End tasks with their processes, whether they are running or waiting."""
