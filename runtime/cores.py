"""Some of a machine's cores for one process, and none that another such process has.

In: how many. Out: a context in which there are those alone, so that who asks how many there are is told that number.
A core is taken by the name of a socket, which the system frees with the process, however it ends. Knows nothing about
what is computed.

OpenVINO ties its threads to the first processors that it may use, and every process finds the same ones: of two on one
machine, each would wait for the other.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from edge.runtime.errors import SettingsError
from edge.runtime.machine import processors_by_core

Core = tuple[int, ...]  # its processors
_THREADS = Path("/proc/self/task")
_NAME = "\0edgeglm.core.{}"  # seen by every process of a machine, or of a container with a network of its own

logger = logging.getLogger(__name__)


@contextmanager
def own_cores(count: int | None) -> Iterator[None]:
    """Keep this thread, and what it starts, to `count` cores, free ones first; None: to those that it has anyway.

    Raises SettingsError where a system keeps no process to cores.
    """
    if count is None:
        yield
        return
    if sys.platform != "linux":
        raise SettingsError("threads can be limited on Linux only; leave them out")
    before, cores = os.sched_getaffinity(0), processors_by_core()
    if count >= len(cores):
        yield
        return
    with ExitStack() as stack:
        os.sched_setaffinity(0, _taken(cores, lambda chosen: len(chosen) >= count, stack))
        stack.callback(os.sched_setaffinity, 0, before)
        yield


@contextmanager
def own_processors(count: int) -> Iterator[None]:
    """Keep this process to whole cores of `count` processors or more, free ones first, where a system can do so.

    All of its threads are kept there, as OpenVINO asks the main one, whichever loads a model.
    """
    if sys.platform != "linux" or count >= len(os.sched_getaffinity(0)):
        yield
        return
    before = os.sched_getaffinity(0)
    with ExitStack() as stack:
        _keep_process(_taken(processors_by_core(), lambda chosen: sum(map(len, chosen)) >= count, stack))
        stack.callback(_keep_process, before)
        yield


def _taken(cores: list[Core], enough: Callable[[list[Core]], bool], stack: ExitStack) -> set[int]:
    """Return processors of enough cores. Those that are free are taken until the stack is closed."""
    chosen: list[Core] = []
    for core in cores:
        if not enough(chosen) and _take(core[0], stack):
            chosen.append(core)
    if not enough(chosen):  # more processes than cores were started: some share theirs
        logger.warning("%d of %d cores are free, fewer than are wanted; others are shared", len(chosen), len(cores))
    for core in cores:
        if core not in chosen and not enough(chosen):
            chosen.append(core)
    return {processor for core in chosen for processor in core}


def _take(processor: int, stack: ExitStack) -> bool:
    """Take a core until the stack is closed; return whether it was free."""
    name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        name.bind(_NAME.format(processor))
    except OSError:
        name.close()
        return False
    stack.callback(name.close)
    return True


def _keep_process(processors: set[int]) -> None:
    for thread in _THREADS.iterdir():
        with suppress(OSError):  # it has ended
            os.sched_setaffinity(int(thread.name), processors)
