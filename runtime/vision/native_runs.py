"""Long calls into an engine, in a thread of their own, so that Ctrl-C acts while one runs.

In: a call, and how to end it early. Out: what it returned. A call that does not end soon after it was told to is left
to itself: the next one waits for it. Knows nothing about what is called.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
_ASK_EVERY_S = 0.2
_TICK_S = 1.0
_GRACE_S = 1.0  # for a call to end after it was told to


class NativeRuns:
    """One call after the other. `run` is for one thread at a time."""

    def __init__(self) -> None:
        self._left: Future[object] | None = None  # the call that an interrupt left running

    def run(self, call: Callable[[], T], end: Callable[[], None], tick: Callable[[], None] = lambda: None) -> T:
        """Return what the call returns, or raise what it raises.

        tick: is called about every second meanwhile. end: makes the call end soon; it is called, and the call awaited
        for a moment, when this thread is interrupted or `tick` raises.
        """
        if self._left is not None:
            while not self._left.done():
                _await(self._left, _TICK_S)
                tick()
            self._left = None
        found: Future[T] = Future()
        threading.Thread(target=_fill, args=(found, call), name="picture").start()
        try:
            _await(found, _TICK_S)
            while not found.done():
                tick()
                _await(found, _TICK_S)
        except BaseException:
            self._left = found  # type: ignore[assignment]  # only its end is waited for
            end()
            _await(found, _GRACE_S)
            raise
        return found.result()


def _fill(found: Future[T], call: Callable[[], T]) -> None:
    try:
        found.set_result(call())
    except BaseException as error:  # handed to whoever waits
        found.set_exception(error)


def _await(found: Future[T], most_s: float) -> None:
    """Wait for the end of a call, in steps: a wait that is not in steps is not interrupted on Windows."""
    waited = 0.0
    while not found.done() and waited < most_s:
        try:
            found.exception(_ASK_EVERY_S)
        except TimeoutError:
            waited += _ASK_EVERY_S
