"""A cluster is joined or started and left again, and what is wrong with an address is one line."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from edge.runtime.cluster import OWN, joined
from edge.runtime.errors import ClusterError


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    where = f"127.0.0.1:{free_port()}"
    with pytest.raises(ClusterError, match=f"no Ray cluster answers at {where}"), joined(where):
        pass


@pytest.mark.parametrize("address", ["", "somewhere", "ray://127.0.0.1:10001", "127.0.0.1:", ":6379"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match="expected that of its head"), joined(address):
        pass


@pytest.mark.slow
def test_a_cluster_of_this_machine_is_silent_and_ends_with_its_context(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import psutil
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")  # of documentation; nothing is there
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray keeps its token
    heard = signal.getsignal(signal.SIGTERM)
    with joined(OWN, num_cpus=1, object_store_bytes=80 << 20) as cluster:
        assert cluster.is_own
        assert signal.getsignal(signal.SIGTERM) is heard
        children = psutil.Process().children(recursive=True)
        # Processes that call themselves ray::... have written their name over their environment.
        said = {child.environ().get("RAY_USAGE_STATS_ENABLED") for child in children if "ray::" not in child.name()}
        assert said == {"0"}
        assert ray.get(ray.remote(lambda: os.environ["RAY_USAGE_STATS_ENABLED"]).remote()) == "0"
        with joined(OWN) as again:
            assert (again.address, again.is_own) == (cluster.address, False)
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert not psutil.wait_procs(children, timeout=60)[1]
