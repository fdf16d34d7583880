"""One process at a time, for as long as it lives."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from edge.runtime import locks
from edge.runtime.errors import MissingPackageError, OutputError
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


def without_locks(_descriptor: int) -> bool:
    """A file system without locks: network folders say ENOLCK or ENOTSUP, which filelock passes on."""
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_what_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"x\.lock cannot be opened"), hold(tmp_path / "none" / "x.lock", wait_s=0):
        pass
    monkeypatch.setattr(locks, "try_lock", without_locks)
    with pytest.raises(OutputError, match=r"cannot be locked .*local disk"), hold(tmp_path / "x.lock", wait_s=0):
        pass


def test_a_folder_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is then marked in the machine's own folder for temporary files, and both files are gone at the end."""
    folder, temporary = tmp_path / "share", tmp_path / "tmp"
    for path in (folder, temporary):
        path.mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(temporary))
    lock = folder / "x.lock"

    def locking(descriptor: int) -> bool:
        if lock.exists() and os.path.samestat(os.fstat(descriptor), lock.stat()):
            return without_locks(descriptor)
        return try_lock(descriptor)

    monkeypatch.setattr(locks, "try_lock", locking)
    with hold_now(lock) as first, hold_now(lock) as second:
        assert (first, second) == (True, False)
        assert len(list(temporary.iterdir())) == 1
    assert not list(folder.iterdir())
    assert not list(temporary.iterdir())


def test_windows_removes_the_file_after_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It removes no open file: `.NAME.lock` stayed in the user's folder. One that another process has opened stays."""
    monkeypatch.setattr(sys, "platform", "win32")
    lock, opened = tmp_path / "x.lock", set[int]()

    class Windows:
        """os, where a file that is open cannot be removed."""

        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def open(self, *arguments: Any) -> int:
            descriptor = os.open(*arguments)
            opened.add(descriptor)
            return descriptor

        def close(self, descriptor: int) -> None:
            opened.remove(descriptor)
            os.close(descriptor)

    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if opened:
            raise PermissionError(13, "The process cannot access the file because it is being used by another process")
        real(path, missing_ok)

    windows = Windows()
    monkeypatch.setattr(locks, "os", windows)
    monkeypatch.setattr(Path, "unlink", unlink)
    with hold_now(lock) as held:
        assert held
        assert lock.exists()
    assert not lock.exists()
    with hold_now(lock) as held:
        other = windows.open(lock, os.O_RDWR)
    assert lock.exists()
    windows.close(other)


def test_without_filelock_nothing_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "filelock", None)
    for attempt in (hold_now(tmp_path / "x.lock"), hold(tmp_path / "x.lock", wait_s=0)):
        with pytest.raises((MissingPackageError, ModuleNotFoundError), match="filelock"), attempt:
            pass
    assert not list(tmp_path.iterdir())
