"""A Ray cluster as a pool: its nodes, and tasks on them.

In: a cluster that this process has joined. Out: what `pool.py` says. A task that is lost is not run again here, and one
that is cancelled ends with its worker's process, which ends the step's. Knows nothing about sweeps.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from edge.profiles.cluster.pool import Ended, Facts, Handle, Lost, Node, Report, Work
from edge.profiles.cluster.task import Wanted, boot_id, look, run_here
from edge.profiles.machine_record import machine_record
from edge.runtime.errors import ClusterError, telling_line

NODE = "ray.io/node-id"  # a label that Ray gives every node
LOOK_S = 60.0  # that a node has to answer: its first worker starts meanwhile
CANCEL_S = 10.0  # that cancelled tasks have to end
TELL_EVERY_S = 1.0


class Board:
    """Where tasks write how far they are."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, int, int]] = {}

    def tell(self, name: str, state: tuple[str, int, int]) -> None:
        self._told[name] = state

    def take(self) -> dict[str, tuple[str, int, int]]:
        told, self._told = self._told, {}
        return told


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _look(wanted: Wanted) -> Facts:
    return look(_node_id(), wanted)


def _run(
    wanted: Wanted, name: str, task: Mapping[str, Any], cores: int | None, board: Any
) -> Report:  # an actor's handle
    last = 0.0

    def tell(phase: str, done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) >= last + TELL_EVERY_S:
            last = now
            board.tell.remote(name, (phase, done, total))

    return run_here(_node_id(), wanted, task, cores, tell)


class RayPool:
    """The cluster that this process has joined."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        # Work is placed by label alone, and what nobody asked for may not start a second time beside the first.
        self._look = ray.remote(num_cpus=0, max_retries=0)(_look)
        self._run = ray.remote(max_retries=0)(_run)
        self._board: Any = ray.remote(num_cpus=0)(Board).options(label_selector={NODE: _node_id()}).remote()
        self._refs: dict[Handle, Any] = {}  # Any: references of Ray
        self._numbers = count()
        self._asked: Any = None  # of the board

    def nodes(self) -> Sequence[Node]:
        known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        found = [node for node in known if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        named = {node["NodeID"]: _name(node) for node in found}
        times = Counter(named.values())
        unique = {node_id: name if times[name] == 1 else f"{name} ({node_id[:6]})" for node_id, name in named.items()}
        return sorted(
            (
                Node(
                    node["NodeID"],
                    unique[node["NodeID"]],
                    node["Resources"]["CPU"],
                    int(node["Resources"].get("memory", 0)),
                )
                for node in found
            ),
            key=lambda node: (node.name, node.node_id),
        )

    def look(self, nodes: Sequence[Node]) -> Mapping[str, Facts]:
        asked = {
            node.node_id: self._look.options(label_selector={NODE: node.node_id}).remote(self._wanted) for node in nodes
        }
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=LOOK_S)
        return {node_id: self._answer(node_id, ref) for node_id, ref in asked.items()}

    def _answer(self, node_id: str, ref: Any) -> Facts:
        try:
            found: Facts = ray.get(ref, timeout=0)
        except GetTimeoutError:
            ray.cancel(ref, force=True)
            return Facts(node_id, machine_record(), node_id, f"it has not answered within {LOOK_S:.0f} s")
        except RayError as error:
            return Facts(node_id, machine_record(), node_id, _said(error))
        return found

    def submit(self, work: Work) -> Handle:
        handle = Handle(next(self._numbers))
        run = self._run.options(
            name=work.name,
            num_cpus=work.cpus,
            memory=work.memory_bytes,
            label_selector={NODE: f"in({','.join(work.node_ids)})"},
            scheduling_strategy="SPREAD",
        )
        self._refs[handle] = run.remote(self._wanted, work.name, work.task, work.cores, self._board)
        return handle

    def wait(self, seconds: float) -> list[Ended]:
        if not self._refs:
            return []
        ready, _ = ray.wait(list(self._refs.values()), num_returns=1, timeout=seconds)
        handles = [handle for handle, ref in self._refs.items() if ref in ready]
        return [(handle, _ended(self._refs.pop(handle))) for handle in handles]

    def progress(self) -> Mapping[str, tuple[str, int, int]]:
        told: dict[str, tuple[str, int, int]] = {}
        with contextlib.suppress(RayError):  # the board's node may be the one that was lost
            if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
                asked, self._asked = self._asked, None
                told = ray.get(asked)
        if self._asked is None:
            self._asked = self._board.take.remote()
        return told

    def cancel(self, handles: Sequence[Handle]) -> None:
        refs = [ref for handle in handles if (ref := self._refs.pop(handle, None)) is not None]
        for ref in refs:
            ray.cancel(ref, force=True)  # a worker that waits for its step hears nothing less
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=CANCEL_S)


def _name(node: Mapping[str, Any]) -> str:
    """The name that a node was given; its host's if it was given none."""
    given = node.get("NodeName")
    return str(node["NodeManagerHostname"] if given in (None, "", node["NodeManagerAddress"]) else given)


def _ended(ref: Any) -> Report | Lost:
    """Raises ClusterError where the cluster itself has gone."""
    try:
        report: Report = ray.get(ref)
    except LocalRayletDiedError as error:
        raise ClusterError("this machine's node of the cluster has ended; start it, and run this again") from error
    except OutOfMemoryError:
        return Lost("its node ran out of memory")
    except NodeDiedError:  # whose text is advice about Ray's own tools
        return Lost("its node died")
    except (RayTaskError, RuntimeEnvSetupError) as error:
        return Report(_here(), error=_said(error))
    except RayError as error:
        return Lost(_said(error))
    return report


def _here() -> Facts:
    return Facts(_node_id(), machine_record(), boot_id())


def _said(error: RayError) -> str:
    return telling_line(str(error), last=True)
