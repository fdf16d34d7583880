"""Who makes the scheduler's steps: whichever thread waits for an answer, one at a time.

In: requests and calls from any thread. Out: steps. There is no thread of our own: a reader whose answer has nothing new
makes a step, unless another reader is making one; then it waits for that one to end. So submitting, cancelling and
reading figures never wait for a step, and what has to happen between two steps waits for at most the running one.
Knows nothing about what a step does.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from edge.runtime.errors import ClosedError
from edge.runtime.request import Request
from edge.runtime.scheduler import Scheduler, SchedulerStats

T = TypeVar("T")


class _Call(Generic[T]):
    """Something to be done between two steps, and what came of it."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._result: list[T] = []
        self._error: BaseException | None = None
        self.done = False

    def run(self) -> None:
        try:
            self._result.append(self._function())
        except Exception as error:  # it belongs to whoever asked, in another thread perhaps
            self._error = error
        finally:
            self.done = True

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        if not self._result:  # Ctrl-C, in the thread that ran it
            raise KeyboardInterrupt
        return self._result[0]


class Runner:
    """Steps of one scheduler, shared by all its readers."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._changed = threading.Condition()
        self._stepping = False  # whether some thread has the turn
        self._closed = False
        self._calls: deque[_Call[object]] = deque()

    @property
    def stats(self) -> SchedulerStats:
        """Figures as they are, also while a step runs."""
        return self._scheduler.stats

    @property
    def closed(self) -> bool:
        """Whether everything has been ended for good."""
        return self._closed

    def check_open(self) -> None:
        """Raises ClosedError after `close`."""
        if self._closed:
            raise ClosedError("this model has been closed; load it again")

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn. Returns at once. Raises ClosedError."""
        self.check_open()
        self._scheduler.submit(request)

    def cancel(self, request: Request) -> None:
        """Let go of a request: now where no step runs, else when the running one ends. Returns at once."""
        request.cancelled = True
        self._with_turn(lambda: True, self._scheduler.sweep, wait=False)

    def advance(self, request: Request) -> None:
        """Return when a request has news. Raises DeviceError when a step that this thread makes fails."""
        while not request.has_news:
            self._with_turn(lambda: request.has_news, self._step)

    def close(self, release: Callable[[], None]) -> bool:
        """End every request and call a function; what it raises is raised here. False where that has been done."""

        def end() -> None:
            self._scheduler.cancel_all()
            release()

        with self._changed:
            if self._closed:
                return False
            self._closed = True
        self._call(end)
        return True

    def between_steps(self, function: Callable[[], T]) -> T:
        """Call a function while no step runs; what it raises is raised here. Raises ClosedError."""
        self.check_open()
        return self._call(function)

    def _call(self, function: Callable[[], T]) -> T:
        call = _Call(function)
        self._calls.append(call)  # type: ignore[arg-type]  # a list of calls of any result
        while not call.done:
            self._with_turn(lambda: call.done, lambda: None)
        return call.result()

    def _step(self) -> None:
        if self._closed:  # a request that was submitted just before
            self._scheduler.cancel_all()
        else:
            self._scheduler.step()

    def _with_turn(self, is_ready: Callable[[], bool], work: Callable[[], None], *, wait: bool = True) -> None:
        """Work with the turn, calls of other threads first and last; or wait until another's turn makes it ready."""
        mine = False
        try:
            with self._changed:
                while self._stepping and wait and not is_ready():
                    self._changed.wait()
                if self._stepping or (wait and is_ready()):
                    return
                mine = self._stepping = True
            self._make_calls()
            work()
            self._make_calls()
        finally:
            if mine:
                with self._changed:
                    self._stepping = False
                    self._changed.notify_all()

    def _make_calls(self) -> None:
        while self._calls:
            self._calls.popleft().run()
