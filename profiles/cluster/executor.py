"""Runs the steps of a sweep on a cluster: side by side what may be, one a machine and alone what is timed.

In: steps, a pool. Out: a `Done` for each. The cluster's scheduler is told the threads and the memory of every step, and
chooses nodes. Speeds wait until all other steps have ended; each then has the whole of a node, and no node of the same
machine has one meanwhile. Only machines of one kind, the most frequent, are timed, so that speeds can be compared. A
step whose node is lost runs again elsewhere. Knows nothing about Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from edge.profiles.cluster.pool import Facts, Handle, Lost, Node, Pool, Report, Work
from edge.profiles.machine_record import MachineRecord, Place
from edge.profiles.sweep_steps import Done, Step, TellStep
from edge.runtime.errors import ClusterError
from edge.runtime.notices import notice
from edge.runtime.sizes import human_bytes

MOST_RUNS = 3  # of a step whose node is lost each time
_LOOK_EVERY_S = 2.0  # for nodes that came or went, and for progress
_QUEUED = 1  # steps beyond those that run: a node that becomes free has its next one at once


@dataclass
class ClusterSteps:
    """An executor on a cluster."""

    pool: Pool
    here: MachineRecord  # of the machine that the sweep is run from
    here_boot: str
    cores: int  # that an export, or a measurement of accuracy, computes on
    memory_bytes: Callable[[Step], int]  # about what a step takes
    is_left: bool = False  # whether this process leaves the cluster afterwards, which ends what runs there
    apart: bool = field(default=True, init=False)
    _facts: dict[str, Facts] = field(default_factory=dict)  # by node_id; also of nodes that are gone
    _names: dict[str, str] = field(default_factory=dict)  # likewise
    _running: dict[Handle, _Task] = field(default_factory=dict)
    _speeds: list[Step] = field(default_factory=list)  # that wait
    _losses: Counter[str] = field(default_factory=Counter)  # by name of the step
    _ended: list[Done] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # One time in ten, Ray 2.60.0 ends the program that cancels a running task: "Tried to complete task that was not
        # pending" (task_manager.cc; ray-project/ray pull request 54738 is about this race).
        if not self.is_left:
            self.pool.cancel(list(self._running))

    def check(self) -> None:
        """Look at the nodes before any work. Raises ClusterError where none can take part."""
        if not self._nodes():
            reasons = [f"{self._names[node_id]}: {found.unfit}" for node_id, found in self._facts.items()]
            raise ClusterError(
                "no node of the cluster can take part"
                + (f" ({'; '.join(reasons)})" if reasons else ", as none has a CPU for tasks; add one")
            )

    @property
    def has_room(self) -> bool:
        slots = sum(int(node.cpus // self.cores) for node in self._nodes())
        return sum(not task.is_timed for task in self._running.values()) < slots + _QUEUED

    @property
    def is_timing_here(self) -> bool:
        return self.here_boot in self._timed_machines()

    def start(self, step: Step) -> None:
        if step.kind == "speed":
            self._speeds.append(step)
        else:
            self._start_shared(step)

    def next(self, tell: TellStep) -> Done:
        while True:
            self._start_speeds()
            self._move_what_fits_nowhere()
            if self._ended:
                return self._ended.pop(0)
            for handle, ended in self.pool.wait(_LOOK_EVERY_S):
                self._take(handle, ended)
            by_name = {task.step.name: task.step for task in self._running.values()}
            for name, state in self.pool.progress().items():
                if name in by_name:
                    tell(by_name[name], *state)

    def _start_shared(self, step: Step) -> None:
        """Have the scheduler run a step on any node that can hold it; fail it where none can."""
        nodes, needed = self._nodes(), self.memory_bytes(step)
        able = [node.node_id for node in nodes if _holds(node, self.cores, needed)]
        if able:
            self._submit(step, Work(step.name, step.task, self.cores, needed, self.cores, tuple(able)))
        else:
            self._ended.append(Done(step, error=_too_large(self.cores, needed, nodes)))

    def _start_speeds(self) -> None:
        """Give each machine that has none a speed to measure, once nothing else is running; fail what none can hold."""
        if any(not task.is_timed for task in self._running.values()):
            return
        nodes = timed_nodes(self._nodes(), self._facts)
        for step in list(self._speeds):
            needed = self.memory_bytes(step)
            able = [node for node in nodes if _holds(node, 1, needed)]
            free = [node for node in able if self._facts[node.node_id].boot not in self._timed_machines()]
            if free:
                self._speeds.remove(step)
                self._submit(step, Work(step.name, step.task, free[0].cpus, needed, None, (free[0].node_id,)))
            elif not able:
                self._speeds.remove(step)
                self._ended.append(Done(step, error=_too_large(1, needed, nodes)))

    def _submit(self, step: Step, work: Work) -> None:
        self._running[self.pool.submit(work)] = _Task(step, work)

    def _timed_machines(self) -> set[str]:
        """Where a speed is being measured."""
        timed = (task.work.node_ids[0] for task in self._running.values() if task.is_timed)
        return {self._facts[node_id].boot for node_id in timed}

    def _take(self, handle: Handle, ended: Report | Lost) -> None:
        step = self._running.pop(handle).step
        if isinstance(ended, Report):
            self._facts[ended.facts.node_id] = ended.facts
            place = None if ended.outcome is None else self._place(ended.facts)
            self._ended.append(Done(step, ended.outcome, ended.error, place))
            return
        self._losses[step.name] += 1
        if self._losses[step.name] < MOST_RUNS:
            notice(f"{step.name} was lost ({ended.reason}); it runs again")
            self.start(step)
        else:
            self._ended.append(Done(step, error=f"it was lost {MOST_RUNS} times ({ended.reason}); run this again"))

    def _move_what_fits_nowhere(self) -> None:
        """Start again what waits for nodes that have all gone, as the scheduler would forever."""
        alive = {node.node_id for node in self._nodes()}
        for handle, task in list(self._running.items()):
            if alive.isdisjoint(task.work.node_ids):
                self.pool.cancel([handle])
                self._take(handle, Lost("its nodes have left the cluster"))

    def _nodes(self) -> list[Node]:
        """The nodes that are alive and fit, each of which has been looked at."""
        nodes = self.pool.nodes()
        if unknown := [node for node in nodes if node.node_id not in self._facts]:
            found = self.pool.look(unknown)
            self._facts |= found
            for node in unknown:
                if unfit := found[node.node_id].unfit:
                    notice(f"node {node.name} is left out: {unfit}")
        self._names |= {node.node_id: node.name for node in nodes}
        return [node for node in nodes if not self._facts[node.node_id].unfit]

    def _place(self, facts: Facts) -> Place:
        return Place(self._names[facts.node_id], None if facts.machine == self.here else facts.machine)


@dataclass(frozen=True, slots=True)
class _Task:
    """A step that the cluster has been given."""

    step: Step
    work: Work

    @property
    def is_timed(self) -> bool:
        return self.step.kind == "speed"


def timed_nodes(nodes: list[Node], facts: Mapping[str, Facts]) -> list[Node]:
    """The nodes whose kind of machine is the most frequent; of kinds as frequent, the first."""
    kinds = Counter(_kind(facts[node.node_id].machine) for node in nodes)
    if not kinds:
        return []
    [(most, _)] = kinds.most_common(1)
    return [node for node in nodes if _kind(facts[node.node_id].machine) == most]


def _kind(machine: MachineRecord) -> tuple[str, int, str]:
    return machine["processor"], machine["cores"], machine["system"]


def _holds(node: Node, cpus: float, memory_bytes: int) -> bool:
    return node.cpus >= cpus and node.memory_bytes >= memory_bytes


def _too_large(cpus: float, memory_bytes: int, nodes: list[Node]) -> str:
    wanted = f"it takes {cpus:g} CPUs and {human_bytes(memory_bytes)} of memory"
    if not nodes:
        return f"{wanted}, and no node of the cluster can take part; add one, and run this again"
    most = ", ".join(f"{node.name} {node.cpus:g} and {human_bytes(node.memory_bytes)}" for node in nodes[:3])
    return (
        f"{wanted}, more than any node has ({most}{', ...' if len(nodes) > 3 else ''}); add a larger node, or take "
        "fewer threads"
    )
