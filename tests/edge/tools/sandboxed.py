"""Whether this machine lets bubblewrap make a sandbox, asked of bubblewrap alone; and what runs below a process."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def _reason() -> str | None:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "bubblewrap (bwrap) is not installed"
    done = subprocess.run([bwrap, "--unshare-all", "--ro-bind", "/", "/", "true"], capture_output=True, check=False)
    return f"bubblewrap cannot make a sandbox here: {done.stderr.decode().strip()}" if done.returncode else None


REASON = _reason()
needs_sandbox = pytest.mark.skipif(REASON is not None, reason=REASON or "")


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, the nearest first."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found[1:]


def pidfds(pid: int, least: int, before: Collection[int] = (), seconds: float = 60) -> list[int]:
    """Wait until a process has that many descendants that it had not before, and return descriptors of them all."""
    deadline = time.monotonic() + seconds
    while True:
        new, found = [child for child in descendants(pid) if child not in before], list[int]()
        for child in new:
            with suppress(ProcessLookupError):  # it has just ended
                found.append(os.pidfd_open(child))
        if len(found) >= least:
            return found
        for descriptor in found:
            os.close(descriptor)
        assert time.monotonic() < deadline, new
        time.sleep(0.01)


def all_end(descriptors: list[int], seconds: float = 30) -> bool:
    """Wait for the end of processes; a descriptor becomes readable with it."""
    deadline = time.monotonic() + seconds
    waiting = list(descriptors)
    while waiting and time.monotonic() < deadline:
        ended, _, _ = select.select(waiting, [], [], 0.1)
        waiting = [descriptor for descriptor in waiting if descriptor not in ended]
    for descriptor in descriptors:
        os.close(descriptor)
    return not waiting
