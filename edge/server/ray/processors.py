"""Processors of a replica's own, where several run on one machine.

In: how many. Out: this thread, and those that it starts, run on these alone. Knows nothing about engines.

OpenVINO binds its threads to the first processors that it may use, and every process finds the same ones: two replicas
of one thread each would share a processor, whatever the scheduler gave them. So each takes some that no other has, by
locks that end with its process.
"""

from __future__ import annotations

import getpass
import logging
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from edge.runtime.locks import try_lock

logger = logging.getLogger(__name__)


class Processors:
    """Those that this process has, until it ends or `release` is called."""

    def __init__(self) -> None:
        self._held: list[int] = []  # descriptors of locked files

    def take(self, number: int) -> frozenset[int]:
        """Take processors, and run on them from now on; none where there are not enough, or no way to choose."""
        if sys.platform != "linux":
            return frozenset()
        found: set[int] = set()
        with suppress(OSError):  # no locks, or somebody else's folder: the scheduler decides
            folder = Path(tempfile.gettempdir()) / f"edge-processors-{getpass.getuser()}"
            folder.mkdir(mode=0o700, exist_ok=True)
            for processor in sorted(os.sched_getaffinity(0)):
                if len(found) < number and self._locked(folder / str(processor)):
                    found.add(processor)
        if len(found) < number:
            logger.warning("%d processors of its own were wanted and %d are free; it shares them", number, len(found))
            self.release()
            return frozenset()
        os.sched_setaffinity(0, found)
        return frozenset(found)

    def release(self) -> None:
        """Let others have them."""
        while self._held:
            os.close(self._held.pop())

    def _locked(self, path: Path) -> bool:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if try_lock(descriptor):
            self._held.append(descriptor)
            return True
        os.close(descriptor)
        return False
