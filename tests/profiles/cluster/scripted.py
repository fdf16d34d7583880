"""A cluster that is played: tasks take their turns as a scheduler would give them, and end as a test says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count

from edge.profiles.cluster.executor import ClusterSteps
from edge.profiles.cluster.pool import Ended, Facts, Handle, Lost, Node, Report, Work
from edge.profiles.machine_record import MachineRecord
from edge.profiles.processes import Outcome
from edge.profiles.sweep_steps import Step, StepKind

HERE: MachineRecord = {"processor": "a processor", "cores": 2, "memory_bytes": 8_000_000_000, "system": "Linux x86_64"}
OTHER: MachineRecord = {**HERE, "processor": "another processor"}
GIGABYTE = 1_000_000_000


def node(name: str, cpus: float = 4, gigabytes: int = 8) -> Node:
    return Node(f"id-{name}", name, cpus, gigabytes * GIGABYTE)


def step(kind: StepKind, name: str) -> Step:
    return Step(kind, name, {"task": kind})


class ScriptedPool:
    """Starts tasks on the first of their nodes with CPUs and memory to spare, and ends the oldest at each wait."""

    def __init__(self, *nodes: Node, machines: Mapping[str, MachineRecord] | None = None) -> None:
        self.alive = list(nodes)
        self.machines = machines or {}  # by a node's name; HERE for the others
        self.boots: dict[str, str] = {}  # by a node's name; its own for the others
        self.unfit: dict[str, str] = {}
        self.ends: Callable[[Work, str], Report | Lost] = self.whole  # of a task on the node of that name
        self.submitted: list[Work] = []
        self.states: list[dict[str, str]] = []  # at each wait, the tasks that run and their nodes
        self.cancelled: list[str] = []
        self._waiting: dict[Handle, Work] = {}
        self._running: dict[Handle, tuple[Work, Node]] = {}
        self._numbers = count()

    def facts(self, name: str) -> Facts:
        machine = self.machines.get(name, HERE)
        return Facts(f"id-{name}", machine, self.boots.get(name, name), self.unfit.get(name, ""))

    def whole(self, work: Work, name: str) -> Report | Lost:
        return Report(self.facts(name), Outcome({"did": work.name}, 1.0, {}))

    def nodes(self) -> Sequence[Node]:
        return list(self.alive)

    def look(self, nodes: Sequence[Node]) -> Mapping[str, Facts]:
        return {node.node_id: self.facts(node.name) for node in nodes}

    def submit(self, work: Work) -> Handle:
        handle = Handle(next(self._numbers))
        self.submitted.append(work)
        self._waiting[handle] = work
        return handle

    def wait(self, seconds: float) -> list[Ended]:
        for handle, work in list(self._waiting.items()):
            if (found := self._place(work)) is not None:
                self._running[handle] = (self._waiting.pop(handle), found)
        self.states.append({work.name: node.name for work, node in self._running.values()})
        if not self._running:
            return []
        handle = min(self._running)
        work, ran_on = self._running.pop(handle)
        return [(handle, self.ends(work, ran_on.name))]

    def _place(self, work: Work) -> Node | None:
        for one in self.alive:
            held = [other for other, place in self._running.values() if place == one]
            cpus = one.cpus - sum(other.cpus for other in held)
            room = one.memory_bytes - sum(other.memory_bytes for other in held)
            if one.node_id in work.node_ids and work.cpus <= cpus and work.memory_bytes <= room:
                return one
        return None

    def progress(self) -> Mapping[str, tuple[str, int, int]]:
        return {work.name: ("accuracy", 1, 2) for work, _ in self._running.values()}

    def cancel(self, handles: Sequence[Handle]) -> None:
        for handle in handles:
            found = self._waiting.pop(handle, None) or self._running.pop(handle, (None, None))[0]
            if found is not None:
                self.cancelled.append(found.name)


def executor(pool: ScriptedPool, cores: int = 2, gigabytes: float = 1) -> ClusterSteps:
    here = replace(node("here"), cpus=0)
    return ClusterSteps(pool, HERE, here.name, cores, lambda _step: int(gigabytes * GIGABYTE))
