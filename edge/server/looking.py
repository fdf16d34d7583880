"""A request whose pictures the model has to look at first, which takes minutes: waited for, told of, and ended.

In: what starts such a request's answers, which runs in a thread of its own, one request after the other. Out: news
while it runs, then streams. Knows nothing about requests or how they are answered.

The thread cannot be stopped, only asked: it looks, between two parts of the tower, at whether it is still wanted. Who
waits for it is let go at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Protocol

from edge.runtime.stream import Stream
from edge.runtime.vision.progress import OnPicture, PictureProgress
from edge.server.metrics import Metrics
from edge.wire.errors import RequestError

Start = Callable[[OnPicture], list[Stream]]
Submit = Callable[[Callable[[], list[Stream]]], "Future[list[Stream]]"]  # puts work before the thread


class NotWantedError(Exception):
    """Raised inside the tower's run, to end it."""


class Starting(Protocol):
    """Streams on their way."""

    async def begun(self, timeout_s: float) -> None:
        """Wait until a model works on it, but no longer than this. Raises what went wrong until then."""

    def news(self) -> AsyncIterator[PictureProgress]:
        """Yield what is told until the streams are there, or something else has ended it."""

    async def streams(self) -> list[Stream]:
        """Wait for the streams. Raises what starting them raises."""


class Ready:
    """Streams that are there."""

    def __init__(self, streams: list[Stream]) -> None:
        self._streams = streams

    async def begun(self, timeout_s: float) -> None:
        """It is."""

    async def news(self) -> AsyncIterator[PictureProgress]:
        """There are none."""
        return
        yield

    async def streams(self) -> list[Stream]:
        """Return them."""
        return self._streams


class PictureWatch:
    """What a request's pictures do to the figures of the server. Made in the event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._last: float | None = None  # when the picture that is looked at was begun

    def tell(self, progress: PictureProgress) -> None:
        """Count what was told in another thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.see, progress)

    def see(self, progress: PictureProgress) -> None:
        """Count what was told. In the event loop, as all below."""
        now = time.perf_counter()
        if progress.kept:
            self._metrics.picture_kept()
        elif self._last is None:
            self._last = now
            self._metrics.looking(1)
        elif progress.done >= progress.total:
            self._metrics.picture_seen(now - self._last)
            self.end()

    def end(self) -> None:
        """No picture is looked at any more."""
        if self._last is not None:
            self._last = None
            self._metrics.looking(-1)


class Looking:
    """One request on its way through the tower. Made and used in the event loop."""

    def __init__(self, start: Start, submit: Submit, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._watch = PictureWatch(metrics)
        self._news: asyncio.Queue[PictureProgress | None] = asyncio.Queue()
        self._begun = asyncio.Event()
        self._wanted = True
        self._streams: asyncio.Future[list[Stream]] = self._loop.create_future()
        self._streams.add_done_callback(lambda _: self._put(None))
        self._work = submit(lambda: self._run(start))
        self._work.add_done_callback(self._elsewhere(self._ended))

    @property
    def is_waiting(self) -> bool:
        """Whether there are no streams yet."""
        return not self._streams.done()

    async def begun(self, timeout_s: float) -> None:
        """Wait until the model looks, but no longer than this. Raises what went wrong until then."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._begun.wait(), timeout_s)
        if self._streams.done():
            self._streams.result()

    async def news(self) -> AsyncIterator[PictureProgress]:
        """Yield what is told until the streams are there, or something else has ended it."""
        while (progress := await self._news.get()) is not None:
            yield progress

    async def streams(self) -> list[Stream]:
        """Wait for the streams. Raises what starting them raises, and what `end` was given."""
        return await asyncio.shield(self._streams)

    def end(self, why: RequestError | None = None) -> None:
        """Want no streams any more. why: what those who wait are told."""
        self._wanted = False
        self._work.cancel()  # if it has not begun
        if self._streams.done():
            return
        if why is None:
            self._streams.cancel()
        else:
            self._streams.set_exception(why)
            self._streams.exception()  # somebody has seen it, also if nobody waits

    def _run(self, start: Start) -> list[Stream]:
        self._check()
        return start(self._tell)

    def _tell(self, progress: PictureProgress) -> None:
        self._check()
        self._elsewhere(self._take)(progress)

    def _check(self) -> None:
        if not self._wanted:
            raise NotWantedError

    def _elsewhere(self, function: Callable[..., None]) -> Callable[..., None]:
        """Return a function that has another one called in the event loop, unless that has ended."""

        def call(*given: object) -> None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function, *given)

        return call

    def _take(self, progress: PictureProgress) -> None:
        self._watch.see(progress)
        if not progress.kept:
            self._put(progress)

    def _put(self, progress: PictureProgress | None) -> None:
        self._news.put_nowait(progress)
        self._begun.set()

    def _ended(self, work: Future[list[Stream]]) -> None:
        self._watch.end()
        if work.cancelled():
            return
        if (error := work.exception()) is not None:
            if not self._streams.done():
                self._streams.set_exception(error)
        elif self._streams.done():  # nobody waited: streams that are not read would keep their place
            for stream in work.result():
                stream.close()
        else:
            self._streams.set_result(work.result())
