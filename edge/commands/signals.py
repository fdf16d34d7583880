"""SIGTERM and SIGHUP as an ordinary end: what is open is closed, and what was learned is written.

In: nothing. Out: `Ended`, raised where the main thread is when one of them comes. It is not a KeyboardInterrupt, which
ends an answer and not the chat. Knows nothing about what is closed.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = ("SIGTERM", "SIGHUP")  # systemd's stop; a terminal that was closed
_REMIND_S = 0.1
_Handler = Callable[[int, FrameType | None], None]


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
    if not handled:
        yield
        return
    heard = threading.Event()

    def end(number: int, _frame: FrameType | None) -> None:
        heard.set()
        for other in handled:
            signal.signal(other, signal.SIG_IGN)
        raise Ended(number)

    try:
        with _reminded(end, heard):
            try:
                for number in handled:
                    signal.signal(number, end)
                yield
            finally:
                for number in handled:
                    signal.signal(number, signal.SIG_IGN)  # a reminder on its way must not end what is over
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _reminded(handler: _Handler, heard: threading.Event) -> Iterator[None]:
    """Send signals with this handler again until they are heard.

    Python runs a handler between two instructions of the main thread. A signal that another thread takes, or that comes
    after the last look for signals and before the system waits, as for a line from a pipe, does not end that waiting.
    """
    main = threading.get_ident()
    here, there = socket.socketpair()
    there.setblocking(False)  # as set_wakeup_fd wants it
    before = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)

    def remind() -> None:
        while number := here.recv(1)[0]:
            while not heard.wait(_REMIND_S) and signal.getsignal(number) is handler:
                signal.pthread_kill(main, number)

    thread = threading.Thread(target=remind, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        heard.set()
        signal.set_wakeup_fd(before)
        there.setblocking(True)
        there.send(bytes(1))
        thread.join()
        here.close()
        there.close()
