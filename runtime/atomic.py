"""Writing a file whole or not at all.

In: a path and the bytes of a file, in parts. Out: the file. Knows nothing about what is in it.

The bytes go into a new file beside it, `NAME.edgeglm-new`, or `NAME.2.edgeglm-new` while another process is writing the
same file; the new file then replaces the old one in one step. Readers see either the old file or the new one. If
several processes write one path, the last to finish wins. The new file is locked, so that a file which a killed process
left can be told from one that is being written, and removed; no user would choose its name. Windows does that without a
lock: it gives each new file a name of its own.
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

if sys.platform != "win32":
    import fcntl  # filelock would do the same, but a slim install, which has none, writes prefixes, too

_BUFFER_BYTES = 1 << 20
_NEW = ".edgeglm-new"
_NAME_BYTES = 255  # the longest file name on nearly every file system
_TOO_LARGE = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def write_atomically(path: Path, parts: Iterable[bytes | memoryview], *, private: bool = True) -> None:
    """Write a file of these parts to `path`, following a link.

    private: only its owner may read it; otherwise those whom the umask of this process lets read new files. Raises
    OutputError when that fails; an existing file is then unchanged.
    """
    target = Path(os.path.realpath(path))
    written, remaining = 0, iter(parts)
    try:
        if target.exists() and not target.is_file():
            raise OutputError(f"{path} exists and is not a file; choose another path")
        descriptor, new = _open_beside(target, 0o600 if private else 0o666)
        try:
            with os.fdopen(descriptor, "wb", _BUFFER_BYTES) as file:
                for part in remaining:
                    written += memoryview(part).nbytes
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
                if sys.platform != "win32":  # before closing it, which drops the lock; Windows renames no open file
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
            detail, advice = f": {wanted:,} bytes are needed, {free:,} free", "free some space, or name another file"
        raise OutputError(f"{path} cannot be written ({error.strerror or error}{detail}); {advice}") from error
    sync_folder(target.parent)


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Replace a file by one that is completely on disk, in a folder where no other process writes.

    Raises OSError when that fails; the new file beside it then stays, and goes with the folder.
    """
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def name_beside(path: Path, suffix: str, *, hidden: bool = False) -> Path:
    """Return a path beside another: its name with a suffix, or a hash of its name if that is too long."""
    dot = "." if hidden else ""
    name = f"{dot}{path.name}{suffix}"
    if len(os.fsencode(name)) > _NAME_BYTES:
        name = f"{dot}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}{suffix}"
    return path.with_name(name)


def _open_beside(target: Path, mode: int) -> tuple[int, Path]:
    """Create a file beside another that no other process takes over while it is open. mode: less what umask takes."""
    if sys.platform == "win32":
        new = name_beside(target, f".{secrets.token_hex(8)}{_NEW}")
        return os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_BINARY, mode), new
    for number in count(1):
        new = name_beside(target, _NEW if number == 1 else f".{number}{_NEW}")
        if os.path.lexists(new) and not _remove_abandoned(new):
            continue
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:  # another process was faster
            continue
        if _lock(descriptor, new, without_locks=True):
            return descriptor, new
        os.close(descriptor)
    raise AssertionError("numbers do not end")


if sys.platform != "win32":

    def _remove_abandoned(new: Path) -> bool:
        """Remove a file that no process is writing; return whether its name is free now."""
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
        """Lock an open file, unless it is locked or lost its name. Returns `without_locks` if there are no locks."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return without_locks
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), new.stat())
        return False


def sync_folder(folder: Path) -> None:
    """Make the new name durable; without this, a crash of the machine may bring the old file back, whole."""
    with contextlib.suppress(OSError):  # Windows opens no folder, and some file systems sync none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
