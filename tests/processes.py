"""Other processes, as a test looks at them: each may end at any moment, and that is never an error here."""

from __future__ import annotations

import time

import psutil


def runs(pid: int) -> bool:
    """Whether a process has not ended; one that has may still wait for its parent, or process 1, to take note."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def gone(pid: int, seconds: float = 30) -> bool:
    """Whether a process has ended, or does within some seconds."""
    until = time.monotonic() + seconds
    while runs(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def children(pid: int) -> list[int]:
    """The processes that one has started and that are there now."""
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []
