"""Requests over HTTP from many clients at once, with the moment at which every part of an answer arrived.

In: an address, and bodies of JSON. Out: a `Reply` for each. While answers come, bytes and times are kept and nothing
is parsed, so that this takes as little as possible of the processor that the server needs. Knows nothing about what
bodies and answers mean.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

Address = tuple[str, int]  # host and port
TIMEOUT_S = 600.0

_HEAD_ENDS, _LINE_ENDS, _EVENT_ENDS, _DATA = b"\r\n\r\n", b"\r\n", b"\n\n", b"data:"


@dataclass(frozen=True, slots=True)
class Post:
    """One request, and when its client loses patience."""

    path: str
    body: bytes  # JSON
    leave_after: int | None = None  # hang up after this many events of a stream
    leave_after_s: float | None = None  # or after this many seconds

    def to_bytes(self, address: Address) -> bytes:
        """The whole request. A connection carries one, so that its end is the end of the answer."""
        lines = (
            f"POST {self.path} HTTP/1.1",
            f"Host: {address[0]}:{address[1]}",
            "Content-Type: application/json",
            f"Content-Length: {len(self.body)}",
            "Connection: close",
        )
        return "\r\n".join(lines).encode() + _HEAD_ENDS + self.body


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream."""

    at: float  # seconds of time.perf_counter
    data: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. Times are those of time.perf_counter."""

    sent_at: float
    head_at: float | None  # all of its headers have arrived
    ended_at: float
    status: int  # 0: no answer came
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case
    body: bytes = b""
    events: tuple[Event, ...] = ()
    complete: bool = False  # it ended as HTTP says, not by a connection that broke
    left: bool = False  # the client hung up, as it had been told to


def run_clients(address: Address, clients: Sequence[Sequence[Post]]) -> list[list[Reply]]:
    """All clients at once, each of which sends its requests one after the other."""

    async def one(posts: Sequence[Post]) -> list[Reply]:
        return [await ask(address, post) for post in posts]

    async def every() -> list[list[Reply]]:
        return await asyncio.gather(*(one(posts) for posts in clients))

    return asyncio.run(every())


async def arrive(
    posts: Sequence[Post], gaps_s: Sequence[float], send: Callable[[Post], Awaitable[Reply]]
) -> list[Reply]:
    """Send each after its gap, whether or not earlier ones have been answered."""
    tasks = []
    due = time.perf_counter()
    for post, gap in zip(posts, gaps_s, strict=True):
        due += gap
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        tasks.append(asyncio.ensure_future(send(post)))
    return list(await asyncio.gather(*tasks))


async def ask(address: Address, post: Post) -> Reply:
    """Send one request on a connection of its own. Never raises for what the server does."""
    loop, sent_at = asyncio.get_running_loop(), time.perf_counter()
    try:
        transport, protocol = await loop.create_connection(lambda: _Client(post, loop.create_future()), *address)
    except OSError:
        return Reply(sent_at, None, time.perf_counter(), 0)
    transport.write(post.to_bytes(address))
    try:
        async with asyncio.timeout(post.leave_after_s or TIMEOUT_S):
            await asyncio.shield(protocol.ended)
    except TimeoutError:
        protocol.left = post.leave_after_s is not None
        transport.abort()
    except asyncio.CancelledError:
        transport.abort()
        raise
    return read_reply(sent_at, time.perf_counter(), protocol.parts, left=protocol.left)


class _Client(asyncio.Protocol):
    """Keeps what arrives."""

    def __init__(self, post: Post, ended: asyncio.Future[None]) -> None:
        self.post, self.ended = post, ended
        self.parts: list[tuple[float, bytes]] = []
        self.left = False
        self._events = 0
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.parts.append((time.perf_counter(), data))
        if self.post.leave_after is not None:
            self._events += data.count(_DATA)
            if self._events >= self.post.leave_after and isinstance(self._transport, asyncio.Transport):
                self.left = True
                self._transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


# --- Reading what has arrived -----------------------------------------------------------------------------------------


def read_reply(sent_at: float, ended_at: float, parts: Sequence[tuple[float, bytes]], *, left: bool) -> Reply:
    """Make sense of the bytes of one connection."""
    raw, times = b"".join(data for _, data in parts), _Times(parts)
    head, found, _ = raw.partition(_HEAD_ENDS)
    if not found:
        return Reply(sent_at, None, ended_at, 0, left=left)
    start = len(head) + len(_HEAD_ENDS)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "chunked" in headers.get("transfer-encoding", ""):
        content, complete = _chunks(raw, start)
    else:
        content, length = [(start, len(raw))], headers.get("content-length")
        complete = length is None or len(raw) - start >= int(length)
    body = b"".join(raw[begin:end] for begin, end in content)
    is_stream = headers.get("content-type", "").startswith("text/event-stream")
    return Reply(
        sent_at,
        times.of(start),
        ended_at,
        int(first.split(" ")[1]),
        headers,
        body,
        tuple(_events(body, content, times)) if is_stream else (),
        complete,
        left,
    )


class _Times:
    """When each byte of a connection arrived."""

    def __init__(self, parts: Sequence[tuple[float, bytes]]) -> None:
        self._times, self._ends, end = [at for at, _ in parts], list[int](), 0
        for _, data in parts:
            end += len(data)
            self._ends.append(end)

    def of(self, end: int) -> float:
        """When all bytes before this offset were there."""
        return self._times[bisect_left(self._ends, end)]


def _chunks(raw: bytes, at: int) -> tuple[list[tuple[int, int]], bool]:
    """Where the content of a chunked body begins and ends, piece by piece, and whether the last chunk is there."""
    pieces = list[tuple[int, int]]()
    while (line_end := raw.find(_LINE_ENDS, at)) >= 0:
        size = int(raw[at:line_end].partition(b";")[0], 16)
        begin = line_end + len(_LINE_ENDS)
        if size == 0:
            return pieces, raw.endswith(_LINE_ENDS, begin)
        pieces.append((begin, min(begin + size, len(raw))))
        at = begin + size + len(_LINE_ENDS)
    return pieces, False


def _events(body: bytes, content: Sequence[tuple[int, int]], times: _Times) -> list[Event]:
    """The events of a stream, each at the moment when its last byte arrived; comments are none."""
    ends, end = list[int](), 0  # of the pieces, in the body
    for begin, stop in content:
        end += stop - begin
        ends.append(end)
    found, start = list[Event](), 0
    while (stop := body.find(_EVENT_ENDS, start)) >= 0:
        after = stop + len(_EVENT_ENDS)
        lines = body[start:stop].split(b"\n")
        data = [line[len(_DATA) :].strip() for line in lines if line.startswith(_DATA)]
        if data:
            piece = bisect_left(ends, after)
            found.append(Event(times.of(content[piece][1] - (ends[piece] - after)), b"\n".join(data)))
        start = after
    return found
