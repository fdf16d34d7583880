"""Cores that a process has to itself, as long as there are any."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from edge.runtime.cores import own_cores, own_processors
from edge.runtime.errors import SettingsError
from edge.runtime.machine import physical_cores, processors_by_core

linux = pytest.mark.skipif(sys.platform != "linux", reason="no process is kept to cores here")


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of this test alone, whatever else runs on the machine."""
    monkeypatch.setattr("edge.runtime.cores._NAME", f"\0{hash(tmp_path)}.{{}}")


@linux
def test_steps_have_cores_to_themselves_as_long_as_there_are_any() -> None:
    before, cores = os.sched_getaffinity(0), processors_by_core()
    if len(cores) < 2:
        pytest.skip("one core")
    with own_cores(1):
        first = os.sched_getaffinity(0)
        assert physical_cores() == 1
        os.sched_setaffinity(0, before)  # as another process has them
        with own_cores(1):
            second = os.sched_getaffinity(0)
            assert first.isdisjoint(second)
    assert os.sched_getaffinity(0) == before
    with own_cores(1):
        assert os.sched_getaffinity(0) == first, "a core that was left is free again"


@linux
def test_more_steps_than_cores_share_them() -> None:
    before, cores = os.sched_getaffinity(0), processors_by_core()
    if len(cores) < 2:
        pytest.skip("one core")
    with own_cores(len(cores) - 1):
        os.sched_setaffinity(0, before)
        with own_cores(len(cores) - 1):
            assert physical_cores() == len(cores) - 1
    with own_cores(len(cores) + 1), own_cores(None):
        assert os.sched_getaffinity(0) == before


def test_other_systems_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SettingsError, match="threads can be limited on Linux only"), own_cores(1):
        pass


@linux
def test_every_thread_of_a_process_is_kept_to_its_processors() -> None:
    before = os.sched_getaffinity(0)
    if len(processors_by_core()) < 2:
        pytest.skip("one core")
    here, done = threading.Event(), threading.Event()

    def wait() -> None:
        here.set()
        done.wait()

    threads = [threading.Thread(target=wait), threading.Thread(target=lambda: inside(before))]

    def inside(before: set[int]) -> None:
        with own_processors(1):  # not by the main thread, as in a replica
            first = os.sched_getaffinity(0)
            found.extend([first, os.sched_getaffinity(os.getpid()), os.sched_getaffinity(threads[0].native_id or 0)])
            os.sched_setaffinity(0, before)
            with own_processors(1):
                found.append(os.sched_getaffinity(os.getpid()))

    found: list[set[int]] = []
    threads[0].start()
    here.wait()
    threads[1].start()
    threads[1].join()
    done.set()
    threads[0].join()
    first, main, other, second = found
    assert first == main == other
    assert first.isdisjoint(second)
    assert os.sched_getaffinity(os.getpid()) == before


@linux
def test_a_replica_and_a_step_keep_clear_of_each_other() -> None:
    before = os.sched_getaffinity(0)
    if len(processors_by_core()) < 2:
        pytest.skip("one core")
    with own_processors(1):
        replica = os.sched_getaffinity(0)
        os.sched_setaffinity(0, before)  # as another process has them
        with own_cores(1):
            assert replica.isdisjoint(os.sched_getaffinity(0))


@linux
def test_cores_of_a_process_that_was_killed_are_free() -> None:
    before = os.sched_getaffinity(0)
    if len(processors_by_core()) < 2:
        pytest.skip("one core")
    with own_cores(1):
        first = os.sched_getaffinity(0)
    if (child := os.fork()) == 0:
        with own_cores(1):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with own_cores(1):
        assert os.sched_getaffinity(0) == first
    assert os.sched_getaffinity(0) == before


@linux
def test_who_wants_all_processors_keeps_them() -> None:
    before = os.sched_getaffinity(0)
    with own_processors(len(before)):
        assert os.sched_getaffinity(0) == before
