"""A real cluster of two nodes on this machine, `edge serve --ray` on it, and ways to break both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from edge.runtime.cluster import SILENT
from tests.edge.server.live import Live

OBJECTS = 80 << 20  # bytes of each node's object store
READY_S = 150.0


@dataclass
class Nodes:
    """A head without processors, so that no replica is there, and two nodes with one each."""

    cluster: Any  # ray.cluster_utils.Cluster: without types
    workers: list[Any]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{str(self.cluster.address).rsplit(':', 1)[1]}"

    def remove(self, worker: Any) -> None:
        """Take a node away, at once."""
        self.cluster.remove_node(worker, allow_graceful=False)
        self.workers.remove(worker)

    def add(self) -> None:
        self.workers.append(self.cluster.add_node(num_cpus=1, object_store_memory=OBJECTS))


@contextmanager
def two_nodes(folder: Path) -> Iterator[Nodes]:
    """Start a cluster, and end all of its processes."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ.update(SILENT)
    cluster = Cluster(shutdown_at_exit=True)
    try:
        cluster.add_node(
            num_cpus=0, object_store_memory=OBJECTS, include_dashboard=False, temp_dir=str(folder), dashboard_port=None
        )
        nodes = Nodes(cluster, [])
        nodes.add()
        nodes.add()
        yield nodes
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def served(nodes: Nodes, bundle: Path, *more: str, replicas: int = 2, threads: int = 1) -> Iterator[Live]:
    """`edge serve --ray` in a process of its own, once its replicas are ready."""
    options = ("--ray", nodes.address, "--replicas", str(replicas), "--threads", str(threads), "--port", "0")
    process = subprocess.Popen(
        [sys.executable, "-m", "edge", "serve", str(bundle), "--any-model", *options, *more],
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert " at http://" in line, line
        live = Live(line.split(" at ")[1].split(",")[0], process=process)
        deadline = time.monotonic() + READY_S
        while live.get("/health").status != 200:
            assert process.poll() is None
            assert time.monotonic() < deadline, live.get("/health").body
            time.sleep(0.2)
        wait_for_replicas(live, replicas)
        yield live
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            assert process.stdout is not None
            process.stdout.close()


def replica_processes(nodes: Nodes) -> list[psutil.Process]:
    """The processes of replicas on the nodes that are there."""
    found = []
    for worker in nodes.workers:
        for process in psutil.Process(_raylet_of(worker)).children(recursive=True):
            if process.name().startswith("ray::ServeRepl"):
                found.append(process)
    return found


def _raylet_of(worker: Any) -> int:
    (raylet,) = worker.all_processes["raylet"]
    return int(raylet.process.pid)


def figures(live: Live, name: str) -> dict[str, float]:
    """A figure of every replica, by its name."""
    found = {}
    for line in live.get("/metrics").body.decode().splitlines():
        if line.startswith(f"edge_replica_{name}{{"):
            labels, value = line.rsplit(" ", 1)
            found[labels.split('replica="')[1].split('"')[0]] = float(value)
    return found


def wait_for_replicas(live: Live, number: int, but: Sequence[str] = ()) -> set[str]:
    """Wait until so many replicas answer that are not among some; return their names."""
    deadline = time.monotonic() + READY_S
    while True:
        names = set(figures(live, "answers_total")) - set(but)
        if len(names) == number:
            return names
        assert time.monotonic() < deadline, names
        time.sleep(0.2)
