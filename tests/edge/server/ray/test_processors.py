"""Replicas of one machine get processors of their own."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from pathlib import Path

import pytest

pytest.importorskip("ray")

from edge.server.ray.processors import Processors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a thread choose")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def in_thread(function: object) -> None:
    thread = threading.Thread(target=function)  # type: ignore[arg-type]  # a callable
    thread.start()
    thread.join()


def test_two_that_take_have_no_processor_in_common() -> None:
    all_of_them = os.sched_getaffinity(0)
    if len(all_of_them) < 2:
        pytest.skip("one processor")
    taken: list[frozenset[int]] = []
    holders = [Processors() for _ in range(3)]

    def take(holder: Processors, number: int) -> None:
        taken.append(holder.take(number))
        assert os.sched_getaffinity(0) == (taken[-1] or all_of_them)

    in_thread(lambda: take(holders[0], 1))
    in_thread(lambda: take(holders[1], len(all_of_them) - 1))
    in_thread(lambda: take(holders[2], 1))
    assert taken[0] | taken[1] == all_of_them
    assert not taken[0] & taken[1]
    assert taken[2] == frozenset()  # none is left: it shares
    holders[0].release()
    in_thread(lambda: take(holders[2], 1))
    assert taken[3] == taken[0]
    assert os.sched_getaffinity(0) == all_of_them  # of the thread that asked for nothing
    for holder in holders:
        holder.release()


def test_locks_of_a_process_that_ended_are_free() -> None:
    if os.fork() == 0:
        Processors().take(1)
        os._exit(0)
    os.wait()
    holder = Processors()
    in_thread(lambda: holder.take(len(os.sched_getaffinity(0))))
    assert len(holder._held) == len(os.sched_getaffinity(0))
    holder.release()
