"""SIGTERM and SIGHUP as an ordinary end: what is open is closed, and what was learned is written.

In: nothing. Out: `Ended`, raised where the main thread is when one of them comes. It is not a KeyboardInterrupt, which
ends an answer and not the chat. Knows nothing about what is closed.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = ("SIGTERM", "SIGHUP")  # systemd's stop; a terminal that was closed


class Ended(SystemExit):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number  # as shells count
        self.name = signal.Signals(number).name
        super().__init__(self.exit_code)


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Raise `Ended` at the first of these signals; later ones change nothing, so that closing is not cut short.

    A signal that the process was started to ignore, as by nohup, stays ignored.
    """
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    handled = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        handled = []

    def end(number: int, _frame: FrameType | None) -> None:
        for other in handled:
            signal.signal(other, signal.SIG_IGN)
        raise Ended(number)

    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
