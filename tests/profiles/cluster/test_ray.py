"""Sweeps on a real Ray cluster of two nodes on this machine: equal figures, a node that is killed, commands that are.

Everything is at loopback addresses: a cluster's, and a command's where Ray is told that there is no network.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from edge.export.checkpoint.default import find_checkpoint
from edge.profiles.record import Row, read_profile
from edge.runtime.errors import EdgeError

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="Ray's clusters are of Linux")]

EDGE = [sys.executable, "-m", "edge", "profile", "run"]
TINY = ["--tokens", "256", "--window", "64", "--text", str(Path(__file__)), "--greedy", "16"]
RESULTS = Path(__file__).parents[3] / "profiles" / "results"
# Without it Ray replaces loopback addresses by those of the machine in its network.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
NODE: dict[str, Any] = {
    "num_cpus": 2, "memory": 4 << 30, "object_store_memory": 80 << 20, "include_dashboard": False,
    "node_ip_address": "127.0.0.1",
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The head's node, which commands are connected to; tests add another."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        folder = tempfile.mkdtemp(prefix="ray-")  # short: names of sockets have at most 107 characters
        found = Cluster(initialize_head=True, head_node_args={**NODE, "temp_dir": folder, "node_name": "head"})
        try:
            yield found
        finally:
            found.shutdown()  # type: ignore[no-untyped-call]
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def second(cluster: Cluster) -> Iterator[Any]:  # a Node of Ray, which has no types
    node = cluster.add_node(**NODE, node_name="second")
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node)


def start(cluster: Cluster, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*EDGE, *map(str, arguments), "--ray", cluster.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )


def accuracies(out: Path) -> dict[str, Row]:
    return {row.name: row for row in read_profile(out).rows}


def steps_of(*nodes: Any) -> list[psutil.Process]:  # Nodes of Ray
    """The processes of steps that are running on nodes."""
    raylets = [info.process.pid for node in nodes for info in node.all_processes["raylet"]]
    children = [child for pid in raylets for child in psutil.Process(pid).children(recursive=True)]
    found = []
    for child in children:
        try:
            if "edge.profiles.worker" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


def wait_for_steps(*nodes: Any) -> list[psutil.Process]:
    deadline = time.monotonic() + 60
    while not (found := steps_of(*nodes)):
        assert time.monotonic() < deadline, "no step was started"
        time.sleep(0.05)
    return found


def test_a_node_that_is_killed_costs_its_steps_alone(
    cluster: Cluster, second: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """And the figures are those of one machine, to the last bit."""
    out, recipes = tmp_path / "out", ["--recipes", "int8-asym,int4-asym-g64"]
    process = start(cluster, tiny_checkpoint, out, *recipes, *TINY)
    assert process.stderr is not None
    first = process.stderr.readline()
    assert ": KLD 0." in first, first
    kept = {path: path.read_bytes() for path in (out / "cells").iterdir()}
    assert kept
    steps = wait_for_steps(second)
    cluster.remove_node(second, allow_graceful=False)
    assert not psutil.wait_procs(steps, timeout=60)[1], "a step outlived its node"
    _, said = process.communicate(timeout=150)
    assert process.returncode == 0, said
    assert "it runs again" in said
    profile = read_profile(out)
    assert (len(profile.rows), profile.failures, profile.notes) == (4, (), ())
    for path, before in kept.items():
        assert json.loads(path.read_bytes())["row"]["accuracy"] == json.loads(before)["row"]["accuracy"]
    assert all(row.decode_tokens_per_second and row.load_s for row in profile.rows)
    assert all(set(row.places) == {"export", "accuracy", "speed"} for row in profile.rows)
    assert {row.places["speed"].node for row in profile.rows} <= {"head", "second"}
    assert "- Node head: " in (out / "profile.md").read_text()
    alone = tmp_path / "alone"
    subprocess.run([*EDGE, tiny_checkpoint, alone, *recipes, *TINY, "--no-speed"], capture_output=True, check=True)
    found, wanted = accuracies(out), accuracies(alone)
    assert found.keys() == wanted.keys()
    for name, row in found.items():
        assert (row.accuracy, row.divergence) == (wanted[name].accuracy, wanted[name].divergence)
        assert (row.weight_bytes, row.bits_per_weight) == (wanted[name].weight_bytes, wanted[name].bits_per_weight)


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_no_step_behind(
    ended_by: signal.Signals, cluster: Cluster, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    process = start(cluster, tiny_checkpoint, tmp_path / "out", "--recipes", "int8-asym", *TINY)
    steps = wait_for_steps(cluster.head_node)
    process.send_signal(ended_by)
    assert not psutil.wait_procs(steps, timeout=60)[1], "a step outlived its sweep"
    process.communicate(timeout=100)
    assert process.returncode == (130 if ended_by == signal.SIGINT else -signal.SIGKILL)
    assert not steps_of(cluster.head_node)


def test_the_demo_model_on_two_nodes_has_the_figures_of_the_results(
    cluster: Cluster, second: Any, tmp_path: Path
) -> None:
    """Two windows of forty: the first, and the one in the middle of the text.

    Of both, what the model says of each next token is that of profiles/results, to the last bit. So is the KLD of the
    first; that of the other window is estimated by samples, which are drawn by the number of the window.
    """
    try:
        source = find_checkpoint()
    except EdgeError as error:
        pytest.skip(str(error))
    out = tmp_path / "out"
    options = ["--recipes", "int8-asym,int4-asym-g128", "--tokens", "1024", "--greedy", "0", "--no-speed"]
    process = start(cluster, source, out, *options)
    _, said = process.communicate(timeout=170)
    assert process.returncode == 0, said
    found, wanted = read_profile(out), read_profile(RESULTS)
    if found.machine["processor"] != wanted.machine["processor"]:
        pytest.skip(f"the results are those of {wanted.machine['processor']}")
    rows = {row.name: row for row in wanted.rows}
    assert len(found.rows) == 4
    for row in found.rows:
        assert row.weight_bytes == rows[row.name].weight_bytes
        first, middle = 0, len(rows[row.name].accuracy.per_window_kld) // 2
        ratios = rows[row.name].accuracy.per_window_log_ratio
        assert row.accuracy.per_window_log_ratio == (ratios[first], ratios[middle])
        assert row.accuracy.per_window_kld[0] == rows[row.name].accuracy.per_window_kld[0]
    assert {place.node for row in found.rows for place in row.places.values()} == {"head", "second"}
