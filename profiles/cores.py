"""Some of a machine's cores for one process, and none that another such process has.

In: how many. Out: a context in which this thread, and what it starts, computes on those alone, so that everything that
asks how many cores there are is told that number. A core is taken by the name of a socket, which the system frees with
the process, however it ends. Knows nothing about what is computed.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from edge.runtime.errors import SettingsError
from edge.runtime.machine import processors_by_core


@contextmanager
def own_cores(count: int | None) -> Iterator[None]:
    """Keep to `count` cores, free ones first; None: to those that the process has anyway.

    Raises SettingsError where a system keeps no process to cores.
    """
    if count is None:
        yield
        return
    if sys.platform != "linux":
        raise SettingsError("threads can be limited on Linux only; leave them out")
    before = os.sched_getaffinity(0)
    cores = processors_by_core()
    if count >= len(cores):
        yield
        return
    with ExitStack() as stack:
        free: list[tuple[int, ...]] = []
        for processors in cores:
            if len(free) < count and _take(processors[0], stack):
                free.append(processors)
        # More processes than cores were started: some share theirs.
        chosen = free + [processors for processors in cores if processors not in free][: count - len(free)]
        os.sched_setaffinity(0, {processor for processors in chosen for processor in processors})
        stack.callback(os.sched_setaffinity, 0, before)
        yield


def _take(processor: int, stack: ExitStack) -> bool:
    """Take a core until the stack is closed; return whether it was free."""
    name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        name.bind(f"\0edgeglm.core.{processor}")
    except OSError:
        name.close()
        return False
    stack.callback(name.close)
    return True
