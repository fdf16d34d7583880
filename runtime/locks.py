"""Locked files: one process holds a file, and others stay away or wait.

In: an open file, or a path. Out: whether it is held now. The system releases a lock when the file is closed or the
process ends, however it ends. Knows nothing about what the lock protects.
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

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_ASK_EVERY_S = 0.02


def try_lock(descriptor: int) -> bool:
    """Lock an open file if it is free; return whether this worked. Raises OSError if the file system has no locks."""
    busy: type[OSError] = BlockingIOError
    try:
        if sys.platform == "win32":
            busy = PermissionError
            os.lseek(descriptor, 0, os.SEEK_SET)  # a range of bytes is locked, which must be the same for all
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except busy:
        return False
    return True


@contextmanager
def hold_now(lock: Path) -> Iterator[bool]:
    """Lock a file that is created for this and removed at the end; yield False if another process holds it.

    On a file system without locks, a file in the machine's folder for temporary files is locked instead, which keeps
    other processes of this machine out. Raises OSError when the file cannot be created.
    """
    with ExitStack() as stack:
        held = _hold_named(lock, stack)
        if held is None:
            name = f"edgeglm-{hashlib.sha256(os.fsencode(os.path.realpath(lock))).hexdigest()[:32]}.lock"
            held = bool(_hold_named(Path(tempfile.gettempdir()) / name, stack))
        yield held


def _hold_named(lock: Path, stack: ExitStack) -> bool | None:
    """Lock a file while the stack is open. Returns None if there are no locks; the file is then removed, too."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            held: bool | None = try_lock(descriptor)
        except OSError:
            held = None
        if held and not _is_named(descriptor, lock):  # its holder has just removed it, and there may be a new one
            os.close(descriptor)
            continue
        stack.callback(os.close, descriptor)
        if held is not False:
            stack.callback(_remove, lock, descriptor)
        return held


def _is_named(descriptor: int, lock: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    return False


def _remove(lock: Path, descriptor: int) -> None:
    with suppress(OSError):  # Windows cannot remove an open file, and the folder may have been renamed
        if _is_named(descriptor, lock) and not os.fstat(descriptor).st_size:  # a file with something in it is not ours
            lock.unlink()


@contextmanager
def hold(lock: Path, *, wait_s: float) -> Iterator[None]:
    """Lock a file that is created for this and stays. Raises OutputError if another process keeps it for `wait_s`."""
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
