"""Writing a file whole or not at all.

In: a path and the bytes of a file, in parts. Out: the file. Knows nothing about what is in it.

What is written goes into a file beside it, `NAME.edgeglm-new`, or `NAME.2.edgeglm-new` while another process writes the
same one; that then takes the file's place in one step. Readers have the old file or the new one. Where several write
one path, the last to end wins. The file beside it is locked, so that what a killed process left is told from what is
being written, and removed; its name is one that nobody gives to a file of his own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from edge.runtime.errors import OutputError
from edge.runtime.locks import try_lock

_BUFFER_BYTES = 1 << 20
_NEW = ".edgeglm-new"
_NAME_BYTES = 255  # of a file's name, at most, on nearly every file system
_TOO_LARGE = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def write_atomically(path: Path, parts: Iterable[bytes | memoryview], *, private: bool = True) -> None:
    """Put a file of these parts at `path`, readable by its owner alone unless not `private`. A link is followed.

    Raises OutputError when that fails; then what was there still is.
    """
    target = Path(os.path.realpath(path))
    written, remaining = 0, iter(parts)
    try:
        if target.exists() and not target.is_file():
            raise OutputError(f"{path} is there and is no file; name another one")
        descriptor, new = _open_beside(target)
        try:
            with os.fdopen(descriptor, "wb", _BUFFER_BYTES) as file:
                for part in remaining:
                    written += memoryview(part).nbytes
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
                if not private and sys.platform != "win32":
                    os.fchmod(file.fileno(), 0o644)
                if sys.platform != "win32":  # there an open file cannot be renamed, and here the lock goes with closing
                    new.replace(target)
            if sys.platform == "win32":
                new.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise
    except OSError as error:
        detail, advice = "", "check the folder, or name another file"
        if error.errno in _TOO_LARGE:
            wanted = written + sum(memoryview(part).nbytes for part in remaining)
            free = shutil.disk_usage(target.parent).free
            detail, advice = f": {wanted:,} bytes are wanted, {free:,} free", "free some space, or name another file"
        raise OutputError(f"{path} cannot be written ({error.strerror or error}{detail}); {advice}") from error
    _sync_folder(target.parent)


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Replace a file by one that is on the disk as a whole, in a folder where no other process writes.

    Raises OSError when that fails; the file beside it then stays, for whoever removes the folder.
    """
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def name_beside(path: Path, suffix: str, *, hidden: bool = False) -> Path:
    """The path of something of ours beside a path: its name with the suffix, or a hash of it where that is too long."""
    dot = "." if hidden else ""
    name = f"{dot}{path.name}{suffix}"
    if len(os.fsencode(name)) > _NAME_BYTES:
        name = f"{dot}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}{suffix}"
    return path.with_name(name)


def _open_beside(target: Path) -> tuple[int, Path]:
    """Create a file beside another, which no other process takes for its own as long as it is open."""
    if sys.platform == "win32":
        new = name_beside(target, f".{secrets.token_hex(8)}{_NEW}")
        return os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_BINARY, 0o600), new
    for number in count(1):
        new = name_beside(target, _NEW if number == 1 else f".{number}{_NEW}")
        if os.path.lexists(new) and not _remove_abandoned(new):
            continue
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:  # another process was faster
            continue
        if _lock(descriptor, new, without_locks=True):
            return descriptor, new
        os.close(descriptor)
    raise AssertionError("numbers do not end")


if sys.platform != "win32":

    def _remove_abandoned(new: Path) -> bool:
        """Remove a file that nobody is writing; whether its name is free now."""
        try:
            descriptor = os.open(new, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            return error.errno == errno.ENOENT
        try:
            free = _lock(descriptor, new, without_locks=False)
            if free:
                new.unlink()
            return free
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def _lock(descriptor: int, new: Path, *, without_locks: bool) -> bool:
        """Lock an open file, if nobody has and it still has its name; `without_locks` where there are no locks."""
        try:
            if not try_lock(descriptor):
                return False
        except OSError:
            return without_locks
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), new.stat())
        return False


def _sync_folder(folder: Path) -> None:
    """Make the new name last; without it a crash of the machine may bring the old file back, whole."""
    with contextlib.suppress(OSError):  # Windows opens no folder, and some file systems sync none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
