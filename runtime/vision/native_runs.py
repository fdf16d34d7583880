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
_ASK_EVERY_S = 0.2  # a wait without an end is not interrupted on Windows
_GRACE_S = 1.0  # for a call to end after it was told to


class NativeRuns:
    """One call after the other. `run` is for one thread at a time."""

    def __init__(self) -> None:
        self._left: Future[object] | None = None  # the call that an interrupt left running

    def run(self, call: Callable[[], T], end: Callable[[], None]) -> T:
        """Return what the call returns, or raise what it raises.

        end: makes the call end soon. It is called, and the call awaited for a moment, when this thread is interrupted.
        """
        if self._left is not None:
            _await(self._left)
            self._left = None
        found: Future[T] = Future()
        threading.Thread(target=_fill, args=(found, call), name="picture").start()
        try:
            _await(found)
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


def _await(found: Future[T], most_s: float | None = None) -> None:
    waited = 0.0
    while not found.done() and (most_s is None or waited < most_s):
        try:
            found.exception(_ASK_EVERY_S)
        except TimeoutError:
            waited += _ASK_EVERY_S
