"""What is said when an export ends before its time: what is kept of it, and how to go on.

In: the folder that a bundle is wanted in. Out: lines on stderr. Knows nothing about how an export keeps its work.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def telling_what_is_kept(out: Path) -> Iterator[None]:
    """For the time of an export to `out`: an interrupt's notes are printed, and so is a line before SIGTERM and SIGHUP.

    These two end the process as ever, at once. A thread of its own waits for them, as a handler would run only after
    the computation that is under way, which takes minutes for a block of a large model.
    """
    with _watched(out):
        try:
            yield
        except KeyboardInterrupt as interrupt:
            for note in getattr(interrupt, "__notes__", ()):
                print(f"edge: {note}", file=sys.stderr)
            raise


@contextmanager
def _watched(out: Path) -> Iterator[None]:
    """Threads that are started from here on leave both signals to one that waits for them."""
    if sys.platform == "win32":
        yield
        return
    signals = {s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is signal.SIG_DFL}
    if not signals or threading.current_thread() is not threading.main_thread():
        yield
        return
    ended = threading.Event()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def watch() -> None:
        number = signal.sigwait(signals)
        if not ended.is_set():
            _tell_of_signal(number, out)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            signal.pthread_kill(threading.get_ident(), number)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        assert watcher.ident is not None
        signal.pthread_kill(watcher.ident, min(signals))
        watcher.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _tell_of_signal(number: int, out: Path) -> None:
    from edge.export.destination import find_destination
    from edge.export.output import told_kept
    from edge.runtime.errors import OutputError

    try:
        work = find_destination(out).work
        kept = f"; {told_kept(work)}" if work.is_dir() else ""
        line = f"edge: ended by {signal.Signals(number).name}{kept}\n"
        os.write(2, line.encode(errors="backslashreplace"))
    except (OSError, OutputError):
        pass  # there is no one left to read it
