"""One request for answers: read, checked, computed and sent, whole or as a stream; or dropped when its client leaves.

In: an ASGI request and the kind of its body. Out: a response. Knows nothing about fields or protocols: `edge.wire` has
them.

The client's leaving is noticed at every moment, whatever is being waited for. It ends the answers at once, and nothing
else.

Requests with pictures that the model has not looked at yet are started in a thread of their own, one after the other:
that takes minutes, in which all others are answered. A stream is opened as soon as the model begins to look.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from edge.runtime.chunk import Chunk
from edge.runtime.errors import EdgeError
from edge.runtime.llm import LLM
from edge.runtime.stream import Stream, answer_of
from edge.runtime.vision.progress import OnPicture
from edge.server.body import read_body
from edge.server.errors import RETRY_S, ErrorBody, error_response
from edge.server.leaving import ClientLeft, unless_left
from edge.server.looking import PictureWatch, Ready, Starting
from edge.server.merging import merged
from edge.server.metrics import Metrics, Outcome
from edge.server.service import Service
from edge.server.sse import EventStream
from edge.wire.answers import Head, nothing_in_time
from edge.wire.body import read_body as read_json
from edge.wire.errors import INTERNAL, UNAVAILABLE, RequestError, error_answer
from edge.wire.request import WireRequest

Started = tuple[WireRequest, list[Stream] | None]  # None: there are pictures to look at first

_BASE64 = re.compile(rb"[A-Za-z0-9+/]{1000,}={0,2}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Post:
    """An endpoint that answers bodies of one kind."""

    path: str
    request_type: type[WireRequest]
    id_prefix: str


class Answering:
    """An ASGI application for one endpoint."""

    def __init__(self, post: Post, service: Service, metrics: Metrics, error_body: ErrorBody) -> None:
        self._post, self._service, self._metrics = post, service, metrics
        self._error_body = error_body
        self._settings = service.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        self._metrics.started(self._post.path)
        outcome: Outcome = "cancelled"
        try:
            outcome = await self._answered(scope, receive, send)
        except ClientLeft:
            self._metrics.disconnected()
        except Exception as error:
            told = error_answer(error)
            outcome = "error" if told.status >= INTERNAL else "refused"
            await error_response(told, self._error_body)(scope, receive, send)
        finally:
            self._metrics.ended(self._post.path, outcome)
            ms = (time.perf_counter() - started) * 1000
            logger.info("%s %s: %s, %.0f ms", scope["state"]["request_id"], self._post.path, outcome, ms)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> Outcome:
        with self._service.bodies.taking() as taken:
            raw = await read_body(
                Headers(scope=scope),
                receive,
                max_bytes=self._service.max_body_bytes,
                timeout_s=self._settings.body_timeout_s,
                grown=taken.grown,
            )
            if self._settings.log_prompts:
                logged = _BASE64.sub(lambda found: b"<%d letters>" % len(found[0]), raw)  # of pictures
                logger.info("%s %s", scope["state"]["request_id"], logged.decode("utf-8", "replace"))
            held = [raw]  # so that whoever reads it can let go of it: it may hold pictures
            del raw
            return await unless_left(self._let_in(held, scope, receive, send), receive)

    async def _let_in(self, held: list[bytes], scope: Scope, receive: Receive, send: Send) -> Outcome:
        begun = time.perf_counter()
        with self._service.admitted() as llm:
            watch = PictureWatch(self._metrics)
            with self._service.starting():
                request, streams = await self._in_thread_to_its_end(lambda: self._started(held.pop(), llm, watch.tell))
            if streams is not None:
                return await self._sent(request, Ready(streams), llm, scope, receive, send)
            with self._service.looking(
                lambda tell: request.start(llm, self._settings.sampling, tell), self._metrics
            ) as looking:
                deadline_s = request.settings.options.get("deadline_s")
                if deadline_s is not None:
                    left_s = max(begun + deadline_s - time.perf_counter(), 0)
                    asyncio.get_running_loop().call_later(left_s, looking.end, nothing_in_time())
                return await self._sent(request, looking, llm, scope, receive, send)

    async def _in_thread_to_its_end(self, start: Callable[[], Started]) -> Started:
        """Start streams in a thread. It cannot be cancelled: if the client leaves, they are closed once they are there.

        A stream that nobody reads or closes would keep its place in the model's queue.
        """
        starting = self._service.in_thread(start)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_close_started)
            raise

    def _started(self, raw: bytes, llm: LLM, watch: OnPicture) -> Started:
        """Check a request, and put it into the model's queue if it can go there at once. Raises RequestError."""
        request = self._post.request_type.from_body(read_json(raw))
        self._service.check_model(request.settings.model)
        llm = self._service.for_reading(llm, whole=not request.settings.stream)
        request = request.opened(llm)
        if self._settings.context_policy == "drop-oldest":
            request = request.fitted(llm)
        if not all(picture.is_kept(llm) for picture in request.pictures or ()):
            return request, None
        return request, request.start(llm, self._settings.sampling, watch)

    async def _sent(
        self, request: WireRequest, starting: Starting, llm: LLM, scope: Scope, receive: Receive, send: Send
    ) -> Outcome:
        head = Head(
            f"{self._post.id_prefix}{secrets.token_hex(12)}",
            int(time.time()),
            request.settings.model or self._settings.names[0],
            self._service.fingerprint,
            measured=True,
        )
        if request.settings.stream:
            return await self._streamed(request, starting, head, llm, send)
        found: list[list[Chunk]] = []
        try:
            async with self._running(starting) as streams:
                found = [[] for _ in streams]
                async for index, chunk in self._measured(streams):
                    found[index].append(chunk)
        except EdgeError as error:
            raise request.refusal(error) from error
        body = await self._service.in_thread(lambda: request.answer(head, [answer_of(chunks) for chunks in found], llm))
        await JSONResponse(body)(scope, receive, send)
        return "ok"

    @asynccontextmanager
    async def _running(self, starting: Starting) -> AsyncGenerator[list[Stream]]:
        """Wait for streams, and close them at the end."""
        streams = await starting.streams()
        with self._service.running(streams):
            yield streams

    async def _streamed(self, request: WireRequest, starting: Starting, head: Head, llm: LLM, send: Send) -> Outcome:
        ping_s = min(self._settings.ping_s, 1.0) if request.settings.progress else self._settings.ping_s
        await starting.begun(ping_s)  # an error until then has a status
        events, response = request.events(head, llm), EventStream(send, ping_s)
        outcome: Outcome = "ok"
        try:
            await response.open()
            try:
                await response.send(events.begin())
                async for progress in starting.news():
                    await response.send(events.looking(progress))
                async with self._running(starting) as streams:
                    async for index, chunk in self._measured(streams):
                        await response.send(events.push(index, chunk))
                    await response.send(events.end())
            except EdgeError as error:
                outcome = "error"
                await response.send(events.fail(error_answer(request.refusal(error))))
            await response.close()
        finally:
            response.stop()
        return outcome

    async def _measured(self, streams: list[Stream]) -> AsyncIterator[tuple[int, Chunk]]:
        """Yield the chunks of all streams as they come, each with the index of its stream.

        Raises RequestError if the server ends before they do.
        """
        begun, last = time.perf_counter(), None
        left = len(streams)
        async for index, chunk in merged(streams):
            if chunk.token_ids:
                now = time.perf_counter()
                if last is None:
                    self._metrics.first_token(now - begun)
                elif len(streams) == 1:
                    self._metrics.gap((now - last) / len(chunk.token_ids))
                last = now
            if chunk.stats is not None:
                self._metrics.answered(chunk.stats)
            left -= chunk.finish_reason is not None
            yield index, chunk
        if left:
            raise RequestError(
                "the server ended before the answer did",
                code="shutting_down",
                status=UNAVAILABLE,
                retry_after_s=RETRY_S,
            )


def _close_started(starting: asyncio.Future[Started]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        for stream in starting.result()[1] or ():
            stream.close()
