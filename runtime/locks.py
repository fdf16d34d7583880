"""Locked files: one process holds a file, and others stay away or wait.

In: an open file, or a path. Out: whether it is held now. The system releases a lock when the file is closed or the
process ends, however it ends. Knows nothing about what the lock protects.

filelock locks an open file, on every system. Which file that is and what becomes of it is decided here: one that marks
work in a user's folder goes with the work, one with something in it is not ours and stays as it is, and where a file
system has no locks, processes of this machine still keep out of each other's way.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from edge.runtime.errors import OutputError
from edge.runtime.extras import missing_packages_named

_ASK_EVERY_S = 0.02


def try_lock(descriptor: int) -> bool:
    """Lock an open file if it is free; return whether this worked. Raises OSError if the file system has no locks."""
    from filelock import lock_descriptor

    return lock_descriptor(descriptor, blocking=False)


def _check_installed() -> None:
    """Raise MissingPackageError in a slim install, before a file is created that nobody could lock."""
    with missing_packages_named():
        import filelock  # noqa: F401


@contextmanager
def hold_now(lock: Path) -> Iterator[bool]:
    """Lock a file that is created for this and removed at the end; yield False if another process holds it.

    On a file system without locks, a file in the machine's folder for temporary files is locked instead, which keeps
    other processes of this machine out. Raises OSError when the file cannot be created, and MissingPackageError.
    """
    _check_installed()
    with ExitStack() as stack:
        held = _hold_named(lock, stack)
        if held is None:
            name = f"edgeglm-{hashlib.sha256(os.fsencode(os.path.realpath(lock))).hexdigest()[:32]}.lock"
            held = bool(_hold_named(Path(tempfile.gettempdir()) / name, stack))
        yield held


def _hold_named(lock: Path, stack: ExitStack) -> bool | None:
    """Lock a file while the stack is open. Returns None if there are no locks; the file is then removed, too."""
    while True:
        with ExitStack() as opened:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
            opened.callback(os.close, descriptor)
            try:
                held: bool | None = try_lock(descriptor)
            except OSError:
                held = None
            if held and not _is_named(descriptor, lock):  # its holder has just removed it, and there may be a new one
                continue
            opened.pop_all()
        stack.callback(_let_go, lock, descriptor, remove=held is not False)
        return held


def _is_named(descriptor: int, lock: Path) -> bool:
    """Whether an open file still has its name."""
    if sys.platform == "win32":
        return True  # Windows removes no open file
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    return False


def _let_go(lock: Path, descriptor: int, *, remove: bool) -> None:
    """Unlock a file by closing it, and remove it unless its folder was renamed or there is something in it.

    Removed before, it cannot be locked by a process that waits for it; Windows removes it afterwards, or not at all if
    such a process has opened it.
    """
    if remove and _is_named(descriptor, lock) and not os.fstat(descriptor).st_size:
        if sys.platform == "win32":
            os.close(descriptor)
            descriptor = -1
        with suppress(OSError):
            lock.unlink()
    if descriptor >= 0:
        os.close(descriptor)


@contextmanager
def hold(lock: Path, *, wait_s: float) -> Iterator[None]:
    """Lock a file that is created for this and stays.

    Raises OutputError if another process keeps it for `wait_s`, and MissingPackageError.
    """
    _check_installed()
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise OutputError(f"{lock} cannot be opened ({error}); create the folder or name another file") from error
    try:
        give_up = time.monotonic() + wait_s
        while not _try_lock(descriptor, lock):
            if time.monotonic() > give_up:
                raise OutputError(f"another process has held {lock} for {wait_s:.0f} s; end it and try again")
            time.sleep(_ASK_EVERY_S)
        yield
    finally:
        os.close(descriptor)  # which also unlocks


def _try_lock(descriptor: int, lock: Path) -> bool:
    try:
        return try_lock(descriptor)
    except OSError as error:
        raise OutputError(f"{lock} cannot be locked ({error}); use a folder on a local disk") from error
