"""Requests that run elsewhere: each is sent to a replica, and its chunks come back.

In: requests, as a model's own runner takes them; a handle to the replicas. Out: chunks, where the request's reader
finds them. Knows nothing about HTTP or how a replica computes.

A replica can refuse a call, or be lost with it:

- refused: the next one is asked; where all of them refuse, so does `submit`. What was let in is not refused any more:
  the other samples of a request, and one that has to move.
- lost before the first token of the answer: it is run elsewhere, once.
- lost in mid-answer: it goes on elsewhere from the ids that have come, if its reader can wait for the whole or wants
  that; otherwise it ends with an error. One that gets no further twice in a row ends, too.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, TypeVar, cast

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from edge.runtime.chunk import Chunk, PromptRead, Stats
from edge.runtime.errors import ClosedError, EdgeError
from edge.runtime.request import Request
from edge.runtime.runner import Runner, Watch
from edge.runtime.scheduler import SchedulerStats
from edge.server.ray.call import Accepted, Call, Failed, Piece, Refused
from edge.server.ray.losses import line_of, lost_error, nobody
from edge.wire.errors import RequestError

ACCEPT_S = 120.0  # for a replica to take a call, where all are being started again
CHANGING_S = 0.25  # between two looks for a replica of the right bundle
_SEED_BITS = 62

Pieces = DeploymentResponseGenerator[Piece]
T = TypeVar("T")
LOST = (RayError, RayServeException)
logger = logging.getLogger(__name__)


class Refuse(Protocol):
    """Makes the error for a full queue."""

    def __call__(self, waiting: int) -> RequestError: ...


@dataclass(frozen=True, slots=True)
class Manner:
    """How a request is to be run elsewhere."""

    key: int | None  # of its conversation
    is_whole: bool = False  # nothing of it is told before its end
    resumes: bool = False  # may go on elsewhere after its first token


@dataclass(slots=True, eq=False)
class _Far:
    """A request on its way."""

    request: Request
    call: Call
    manner: Manner
    begun: float = field(default_factory=time.monotonic)
    replica: str = ""
    pieces: Pieces | None = None
    task: asyncio.Task[None] | None = None
    watches: list[Watch] = field(default_factory=list)
    moved_at: int | None = None  # how many ids it had when its replica was lost last
    prompt_read: PromptRead | None = None
    news: threading.Condition = field(default_factory=threading.Condition)


class FarRunner(Runner):
    """What a model's runner is to its readers. Owns a thread with an event loop, in which all calls are made."""

    def __init__(
        self, handle: DeploymentHandle[object], model: str, refuse: Refuse, stats: Callable[[], SchedulerStats]
    ) -> None:
        """stats: of all replicas together, as they are known."""
        self._handle = handle.options(stream=True)
        self._model, self._refuse, self._stats = model, refuse, stats
        self._far: dict[int, _Far] = {}  # by the identity of the request
        self._ended = threading.Event()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="edge-replicas", daemon=True)
        self._thread.start()
        self._manner = Manner(None)
        self._first: _Far | None = None  # of several samples

    def for_samples(self, manner: Manner) -> Self:
        """Return the same runner for one or more samples of one prompt, which are to be run in this manner."""
        other = copy.copy(self)
        other._manner, other._first = manner, None
        return other

    @property
    def stats(self) -> SchedulerStats:
        """Of all replicas together, as they are known."""
        return self._stats()

    @property
    def closed(self) -> bool:
        """Whether it was closed for good."""
        return self._ended.is_set()

    def check_open(self) -> None:
        """Raise ClosedError after `close`."""
        if self.closed:
            raise ClosedError("this model has been closed; load it again")

    def submit(self, request: Request) -> None:
        """Return once a replica has the request in its queue. Raises RequestError where none takes it.

        Further samples of its prompt follow the first one to its replica; what they meet is told when they are read.
        """
        self.check_open()
        manner, settings = self._manner, request.settings
        sampling = settings.sampling
        if sampling.temperature and sampling.seed is None:  # what another replica goes on with
            settings = replace(settings, sampling=replace(sampling, seed=secrets.randbits(_SEED_BITS)))
        ids = tuple(request.ids)
        call = Call(ids, 0, settings, self._model, manner.key, is_whole=manner.is_whole)
        far, first = _Far(request, call, manner), self._first
        self._far[id(request)] = far
        if first is not None:
            far.call = replace(call, at=first.replica, let_in=True)
            self._in_loop(lambda: self._read_soon(far))
            return
        try:
            asyncio.run_coroutine_threadsafe(self._begin(far), self.loop).result()
        except BaseException:
            self._far.pop(id(request), None)
            raise
        self._first = far

    def cancel(self, request: Request) -> None:
        """Drop a request. Never waits."""
        request.cancelled = True
        far = self._far.get(id(request))
        if far is not None:
            self._in_loop(lambda: self._drop(far))

    def advance(self, request: Request) -> None:
        """Return when a request has news."""
        far = self._far.get(id(request))
        while not request.has_news and far is not None:
            with far.news:
                if not request.has_news:
                    far.news.wait(1.0)
            if self.closed:
                request.cancelled = True

    def watch(self, request: Request, notify: Callable[[], None]) -> Watch:
        """Tell of a request's news until its end."""
        watch = Watch(request, notify)
        far = self._far.get(id(request))
        if far is None:
            notify()
        else:
            far.watches.append(watch)
            self._tell(far)
        return watch

    def between_steps(self, function: Callable[[], T]) -> T:
        """Call a function; there are no steps here."""
        self.check_open()
        return function()

    def close(self, release: Callable[[], None]) -> bool:
        """End every request and call `release`. Returns False if it was closed before."""
        if self.closed:
            return False
        self._ended.set()
        for far in list(self._far.values()):
            self.cancel(far.request)
        release()
        self._in_loop(self.loop.stop)
        self._thread.join(5.0)
        return True

    async def _begin(self, far: _Far) -> None:
        await self._ask(far)
        self._read_soon(far)

    def _read_soon(self, far: _Far) -> None:
        far.task = asyncio.ensure_future(self._read_to_the_end(far))

    async def _ask(self, far: _Far) -> None:
        """Find a replica that takes a call. Raises RequestError, or what the call met."""
        began, lost = time.monotonic(), 0
        while True:
            left_s = ACCEPT_S - (time.monotonic() - began)
            pieces = far.pieces = cast("Pieces", self._handle.answer.remote(far.call))
            try:
                piece = await asyncio.wait_for(anext(pieces), max(left_s, 0.01))
            except TimeoutError as error:
                _cancel(pieces)
                raise nobody("no replica is ready; try again soon") from error
            except StopAsyncIteration:
                piece = Refused("", "leaving")
            except LOST as error:
                lost += 1  # before it took the call: the next one is asked, and where that is lost, too, it ends
                logger.warning("a replica was lost before it took a call: %s", line_of(error))
                if lost > 1:
                    raise nobody("the replicas were lost before they answered; try again soon") from error
                continue
            if isinstance(piece, Accepted):
                far.replica = piece.replica
                return
            _cancel(pieces)
            if isinstance(piece, Failed):
                raise piece.error
            assert isinstance(piece, Refused)
            await self._refused(far, piece)

    async def _refused(self, far: _Far, refused: Refused) -> None:
        """Prepare to ask another replica. Raises RequestError if all that there are have no room."""
        avoid = far.call.avoid
        if refused.replica and refused.replica not in avoid:
            far.call = replace(far.call, avoid=avoid | {refused.replica})
        elif refused.why == "full":  # the router has no other left
            raise self._refuse(refused.waiting)
        else:  # bundles are being changed: one with this model will be there, or is still there
            far.call = replace(far.call, avoid=frozenset())
            await asyncio.sleep(CHANGING_S)

    async def _read_to_the_end(self, far: _Far) -> None:
        request = far.request
        try:
            if not far.replica:
                await self._ask(far)
            while not request.finished and not request.unwanted:
                try:
                    await self._read(far)
                except LOST as error:
                    if not request.unwanted:
                        await self._elsewhere(far, error)
        except EdgeError as error:
            request.fail(error)
        except asyncio.CancelledError:
            request.cancelled = True
        except BaseException:
            logger.exception("an answer of a replica could not be read")
            request.fail(lost_error("the answer could not be read"))
        finally:
            if far.pieces is not None and not request.finished:
                _cancel(far.pieces)
            self._far.pop(id(request), None)
            self._tell(far)

    async def _read(self, far: _Far) -> None:
        """Read pieces to the end of the answer. Raises what a lost replica raises."""
        assert far.pieces is not None
        async for piece in far.pieces:
            if isinstance(piece, Failed):
                raise piece.error
            assert isinstance(piece, Chunk)
            self._deliver(far, piece)
            if far.request.finished or far.request.unwanted:
                return
        raise RayServeException("the replica ended its answer before it was whole")

    async def _elsewhere(self, far: _Far, error: Exception) -> None:
        """Have another replica go on. Raises RequestError if that may not be, or did not help before."""
        request = far.request
        num_answered = len(request.answer_ids)
        logger.warning("%s was lost after %d tokens of an answer: %s", far.replica, num_answered, line_of(error))
        may_resume = far.manner.is_whole or far.manner.resumes
        if (num_answered and not may_resume) or far.moved_at == num_answered:
            raise lost_error("the replica that wrote this answer was lost") from error
        far.moved_at = num_answered
        settings = far.call.settings
        if num_answered:
            settings = replace(settings, prompt_logprobs=None)  # they have been told
        if settings.deadline_s is not None:
            passed_s = time.monotonic() - far.begun
            settings = replace(settings, deadline_s=max(settings.deadline_s - passed_s, 0.001))
        ids, avoid = tuple(request.ids), frozenset({far.replica})
        there = replace(far.call, ids=ids, num_answered=num_answered, settings=settings)
        far.call = replace(there, avoid=avoid, at="", let_in=True)
        await self._ask(far)

    def _deliver(self, far: _Far, chunk: Chunk) -> None:
        request = far.request
        if chunk.prompt_read is not None:
            far.prompt_read = chunk.prompt_read
        if chunk.stats is not None and far.moved_at and far.prompt_read is not None:
            chunk = replace(chunk, stats=_as_first_read(chunk.stats, far.prompt_read))
        request.ids.extend(chunk.token_ids)
        request.chunks.append(chunk)
        if chunk.finish_reason is not None:
            request.finished = True
        self._tell(far)

    def _tell(self, far: _Far) -> None:
        """Wake who waits for news."""
        request = far.request
        with far.news:
            far.news.notify_all()
        for watch in far.watches:
            if request.has_news and not watch.told:
                watch.told = True
                try:
                    watch.notify()
                except RuntimeError:  # its event loop has been closed: the reader is gone
                    request.cancelled = True

    def _drop(self, far: _Far) -> None:
        if far.task is not None:
            far.task.cancel()
        self._tell(far)

    def _in_loop(self, function: Callable[[], object]) -> None:
        try:
            self.loop.call_soon_threadsafe(function)
        except RuntimeError:  # it has ended
            return


def _cancel(pieces: Pieces) -> None:
    pieces.cancel()  # type: ignore[no-untyped-call]


def _as_first_read(stats: Stats, read: PromptRead) -> Stats:
    """Return figures of an answer that moved as its reader knows them: those of its first replica's reading."""
    return replace(stats, cached_tokens=read.cached_tokens, ttft_ms=read.ms)
