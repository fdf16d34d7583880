"""What no limit of the kernel holds, looked at from outside while a call runs: threads, and what is written.

In: the interpreter's process id and the folder. Out: a reason to end it, in words. Linux only.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from edge.tools.python.limits import Limits


class Watch:
    """One call. Blocks and files are what the file systems of /mnt/data and /tmp have lost since it began.

    Other programs' share is in it where the folder is on disk. In memory, where the kernel limits the size, all files
    since the start count.
    """

    def __init__(self, pid: int | None, folder: Path | None, limits: Limits) -> None:
        self._pid, self._limits = pid, limits
        self._before: dict[str, os.statvfs_result] = {}
        self._in_memory = set() if pid is None else {f"/proc/{pid}/root/tmp"}
        if folder is None and pid is not None:
            self._in_memory.add(f"/proc/{pid}/root/mnt/data")
        for path in (*self._in_memory, *([] if folder is None else [str(folder)])):
            with suppress(OSError):
                self._before[path] = os.statvfs(path)

    def overrun(self) -> str | None:
        """Return which limit was passed, in words."""
        return None if self._pid is None else self._threads() or self._disks()

    def _threads(self) -> str | None:
        try:
            status = Path(f"/proc/{self._pid}/status").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has ended, which is told elsewhere
            return None
        threads = int(status.partition("\nThreads:")[2].split("\n", 1)[0] or 0)
        return f"it started more than {self._limits.threads} threads" if threads > self._limits.threads else None

    def _disks(self) -> str | None:
        for path, before in self._before.items():
            try:
                now = os.statvfs(path)
            except OSError:  # likewise
                continue
            inside = "/tmp" if path.endswith("/root/tmp") else "/mnt/data"
            files = (before.f_files if path in self._in_memory else before.f_ffree) - now.f_ffree
            if files > self._limits.disk_files:
                return f"{inside} got more than {self._limits.disk_files:,} files"
            if (before.f_bfree - now.f_bfree) * now.f_frsize > self._limits.disk_bytes:
                return f"the disk of {inside} lost more than {self._limits.disk_bytes:,} bytes of free space"
        return None


def innermost(pid: int) -> int:
    """Return the last of a line of only children: bubblewrap, its process 1 inside, the interpreter."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            parents[int(path.read_text(errors="replace").rpartition(")")[2].split()[1])] = int(path.parent.name)
    while pid in parents:
        pid = parents[pid]
    return pid
