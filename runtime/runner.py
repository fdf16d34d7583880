"""The thread that makes the scheduler's steps, and in which no signal handler ever runs.

In: requests and calls from any thread. Out: steps, as long as a reader waits for one, or watches a request that has not
ended. Knows nothing about what a step does.

Python runs signal handlers only in the main thread, and there between any two instructions: Ctrl-C inside a step would
leave engine, cache and queues half changed. So readers change nothing. They put what they want into a queue and wait
for an answer; both are single calls into C (queue.SimpleQueue), which an interrupt leaves either done or not done
(`waiting.py`: on Windows, too). All that an interrupted reader leaves is a request whose answer no one reads.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue
from typing import TypeVar

from edge.runtime.errors import ClosedError, DeviceError
from edge.runtime.request import Request
from edge.runtime.scheduler import Scheduler, SchedulerStats
from edge.runtime.waiting import join, next_of

T = TypeVar("T")


class _Call:
    """A function to call between two steps, and where its result goes."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function
        self.abandoned = False  # its caller no longer waits
        self.answer: SimpleQueue[tuple[object, BaseException | None]] = SimpleQueue()


class _News:
    """A reader that waits for news of a request."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.answer: SimpleQueue[None] = SimpleQueue()


class Watch:
    """A reader that is told of news of a request, until its end; it never holds up the steps."""

    def __init__(self, request: Request, notify: Callable[[], None]) -> None:
        """notify: called in the thread of the steps, so it has to be quick; then not again until `told` is reset."""
        self.request, self.notify = request, notify
        self.told = False


class _Worker:
    """The thread's side. Holds no reference to its runner, so that a model that is no longer used can be freed."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.inbox: SimpleQueue[_Call | _News | Watch | None] = SimpleQueue()  # None: the end
        self.busy = False  # a step may be running, for which the inbox has to wait
        self.ended = False  # nothing is answered from now on
        self.step_began: float | None = None  # when the running step began
        self._waiting: list[_News] = []
        self._watches: list[Watch] = []
        self._pid = os.getpid()
        self.thread = threading.Thread(target=self._work, name="edge-steps", daemon=True)
        self.thread.start()

    @property
    def elsewhere(self) -> bool:
        """Whether this is a forked process, where the thread does not exist."""
        return os.getpid() != self._pid

    def finish(self) -> None:
        """End the thread: tell a running step to end, and wait for it."""
        if not self.elsewhere:
            self.inbox.put(None)
            self._scheduler.interrupt_last()
            if threading.current_thread() is not self.thread:
                join(self.thread)

    def _work(self) -> None:
        try:
            while self._take():
                if self._wanted:
                    self._step()
                    self.busy = False  # before readers are told: closing a stream then waits for its sweep only
                    self._tell()
        finally:
            self.ended = True
            while not self.inbox.empty():
                self._refuse(self.inbox.get())
            for news in self._waiting:
                self._refuse(news)
            for watch in self._watches:
                self._refuse(watch)

    @property
    def _wanted(self) -> bool:
        """Whether anyone wants a step."""
        return bool(self._waiting or self._watches)

    def _take(self) -> bool:
        """Do what the inbox asks for; without readers, wait for more. Returns False at the end."""
        self.busy = self._wanted
        while not self._wanted or not self.inbox.empty():
            item = self.inbox.get()
            if item is None:
                return False
            if isinstance(item, _Call):
                self._run(item)
            else:
                if isinstance(item, Watch):
                    self._watches.append(item)
                else:
                    self._waiting.append(item)
                self._tell()
                self.busy = self._wanted
        return True

    def _step(self) -> None:
        self.step_began = time.monotonic()
        try:
            self._scheduler.step()
        except BaseException as error:  # whatever the line: a thread that ended would leave its readers waiting
            try:
                self._scheduler.recover(error)
            except BaseException as worse:
                self._scheduler.fail_all(worse)
        finally:
            self.step_began = None

    def _run(self, call: _Call) -> None:
        if call.abandoned:
            return
        try:
            call.answer.put((call.function(), None))
        except BaseException as error:  # it belongs to the caller
            call.answer.put((None, error))

    def _tell(self) -> None:
        """Wake the readers that have news."""
        for news in [news for news in self._waiting if news.request.has_news]:
            self._waiting.remove(news)
            news.answer.put(None)
        for watch in list(self._watches):
            if watch.request.has_news and not watch.told:
                watch.told = True
                self._notify(watch)
            if watch.request.finished or watch.request.cancelled:
                self._watches.remove(watch)

    def _notify(self, watch: Watch) -> None:
        try:
            watch.notify()
        except Exception:  # its event loop has been closed: the reader is gone
            watch.request.cancelled = True

    def _refuse(self, item: _Call | _News | Watch | None) -> None:
        if isinstance(item, _Call):
            item.answer.put((None, _closed()))
        elif item is not None:
            item.request.cancelled = True
            if isinstance(item, Watch):
                self._notify(item)
            else:
                item.answer.put(None)


class Runner:
    """Steps of one scheduler, for any number of readers in any threads."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._closed = False
        self._worker = _Worker(scheduler)
        atexit.register(self._worker.finish)  # an interpreter that exits during a step crashes
        weakref.finalize(self, _let_go, self._worker).atexit = False

    @property
    def stats(self) -> SchedulerStats:
        """The current figures, also while a step runs."""
        began = self._worker.step_began
        return replace(self._scheduler.stats, step_s=0.0 if began is None else time.monotonic() - began)

    @property
    def closed(self) -> bool:
        """Whether it was closed for good."""
        return self._closed

    def check_open(self) -> None:
        """Raise ClosedError after `close`, and DeviceError in a process that was forked after the model was loaded."""
        if self._closed:
            raise _closed()
        if self._worker.elsewhere:
            raise DeviceError(
                f"this model was loaded in another process, and a fork (this is process {os.getpid()}) has no threads "
                'of it; load it in each process, or start processes with multiprocessing\'s "spawn"'
            )

    def submit(self, request: Request) -> None:
        """Queue a request and return at once. Raises as `check_open`."""
        self.check_open()
        self._scheduler.submit(request)

    def cancel(self, request: Request) -> None:
        """Drop a request, now or after the step that is running. Never waits for a step."""
        request.cancelled = True
        worker = self._worker
        if worker.ended or worker.elsewhere:
            return
        call = _Call(self._scheduler.sweep)
        worker.inbox.put(call)
        if worker.busy:  # the next step begins with this call
            self._scheduler.interrupt_if_unwanted()
        elif not worker.ended:
            next_of(call.answer)

    def advance(self, request: Request) -> None:
        """Return when a request has news. Raises DeviceError in a forked process."""
        worker = self._worker
        while not request.has_news:
            if worker.elsewhere:
                self.check_open()
            news = _News(request)
            worker.inbox.put(news)
            if worker.ended:  # otherwise it sees the inbox, and answers
                request.cancelled = True
                return
            next_of(news.answer)

    def watch(self, request: Request, notify: Callable[[], None]) -> Watch:
        """Make steps until a request ends, and tell of its news. Returns at once.

        Raises DeviceError in a forked process.
        """
        worker, found = self._worker, Watch(request, notify)
        if worker.elsewhere:
            self.check_open()
        worker.inbox.put(found)
        if worker.ended:
            request.cancelled = True
            notify()
        return found

    def close(self, release: Callable[[], None]) -> bool:
        """End every request and call `release`, raising what it raises. Returns False if it was closed before."""
        self._closed = True
        worker = self._worker
        if worker.ended or worker.elsewhere:
            return False

        def end() -> None:
            self._scheduler.cancel_all()
            release()

        call = _Call(end)
        worker.inbox.put(call)
        worker.inbox.put(None)
        self._scheduler.interrupt_last()
        try:
            if not worker.ended:
                _result(call)
        except ClosedError:  # another thread closed it first
            return False
        join(worker.thread)
        return True

    def between_steps(self, function: Callable[[], T]) -> T:
        """Call a function while no step runs, returning and raising what it does. Raises as `check_open`."""
        self.check_open()
        call = _Call(function)
        self._worker.inbox.put(call)
        if self._worker.ended:
            raise _closed()
        try:
            return _result(call)  # type: ignore[return-value]  # what the function returns
        except BaseException:
            call.abandoned = True  # Ctrl-C: it is not called if it has not begun
            raise


def _result(call: _Call) -> object:
    value, error = next_of(call.answer)
    if error is not None:
        raise error
    return value


def _closed() -> ClosedError:
    return ClosedError("this model has been closed; load it again")


def _let_go(worker: _Worker) -> None:
    """End the thread once its runner is gone. Does not wait: this may run in any thread, at any moment.

    The thread then destroys the engine. An interpreter that exits meanwhile waits for it: stopping a thread inside an
    engine's destructor ends the process ("terminate called without an active exception").
    """
    atexit.unregister(worker.finish)
    atexit.register(worker.thread.join)  # refers to the thread, not to the worker
    worker.inbox.put(None)
