"""Waits that Ctrl-C ends, on every system.

In: a queue or a thread. Out: what came, or the thread's end. Knows nothing about either.

On Windows, nothing interrupts a thread that waits for a lock: Python would look at the signal only after the wait, here
a whole step. So it waits in short slices there. Each is one call into C, which an interrupt leaves done or not done.
"""

from __future__ import annotations

import sys
import threading
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")

SLICE_S = 0.1


def next_of(queue: SimpleQueue[T]) -> T:
    """Return the next item, as soon as there is one."""
    while sys.platform == "win32":
        try:
            return queue.get(timeout=SLICE_S)
        except Empty:
            continue
    return queue.get()


def join(thread: threading.Thread) -> None:
    """Return when the thread has ended."""
    while sys.platform == "win32" and thread.is_alive():
        thread.join(SLICE_S)
    thread.join()
