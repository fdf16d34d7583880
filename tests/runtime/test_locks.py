"""One process at a time, for as long as it lives."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.runtime import locks
from edge.runtime.errors import OutputError
from edge.runtime.locks import hold, hold_now, try_lock

HOLDER = """
import sys, time
from pathlib import Path
from edge.runtime.locks import hold
with hold(Path(sys.argv[1]), wait_s=0):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_that_is_held_now_or_not(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    with hold_now(lock) as first, hold_now(lock) as second:
        assert (first, second) == (True, False)
    assert not lock.exists()


def test_a_lock_whose_file_was_just_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held by nobody, as its holder has ended; but the next one would make and hold another file."""
    lock = tmp_path / "x.lock"
    tries: list[int] = []

    def remove_first(descriptor: int) -> bool:
        if not tries:
            lock.unlink()
        tries.append(descriptor)
        return try_lock(descriptor)

    monkeypatch.setattr(locks, "try_lock", remove_first)
    with hold_now(lock) as held:
        assert held
        assert len(tries) == 2
        with lock.open() as file:
            assert not try_lock(file.fileno())


def test_a_file_with_something_in_it_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "x.lock").write_text("precious")
    with hold_now(tmp_path / "x.lock") as held:
        assert held
    with hold(tmp_path / "x.lock", wait_s=0):
        pass
    assert (tmp_path / "x.lock").read_text() == "precious"


def test_a_lock_is_held_by_one_and_let_go_of_however_it_ends(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with lock.open() as file:
            assert not try_lock(file.fileno())
        started = time.monotonic()
        with pytest.raises(OutputError, match=r"another process has held .*x\.lock for 0 s"), hold(lock, wait_s=0.2):
            pass
        assert time.monotonic() - started >= 0.2
        holder.send_signal(signal.SIGKILL)
        with hold(lock, wait_s=30):
            pass
    with lock.open() as file:
        assert try_lock(file.fileno())


def test_what_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"x\.lock cannot be opened"), hold(tmp_path / "none" / "x.lock", wait_s=0):
        pass

    def without(descriptor: int, _operation: int) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(OutputError, match=r"cannot be locked .*local disk"), hold(tmp_path / "x.lock", wait_s=0):
        pass
