"""Answers over HTTP, with the moment at which every event arrived: however the bytes are cut into parts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.profiles.http_load import Address, Post, Reply, arrive, ask, read_reply, run_clients

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def chunked(pieces: Sequence[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


def cut(data: bytes, sizes: Sequence[int]) -> list[tuple[float, bytes]]:
    """Parts of these sizes, and the rest; part i arrives at second i."""
    parts, start = [], 0
    for size in sizes:
        parts.append(data[start : start + size])
        start += size
    parts.append(data[start:])
    return [(float(at), part) for at, part in enumerate(parts)]


@given(
    events=st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), max_size=6),
    piece=st.integers(1, 50),
    sizes=st.lists(st.integers(0, 40), max_size=20),
)
def test_events_are_read_however_they_are_cut(events: list[str], piece: int, sizes: list[int]) -> None:
    body = b": ping\n\n" + b"".join(b"data: " + text.strip().encode() + b"\n\n" for text in events)
    raw = HEAD + chunked([body[i : i + piece] for i in range(0, len(body), piece)])
    parts = cut(raw, sizes)
    reply = read_reply(0.0, 99.0, parts, left=False)
    assert (reply.status, reply.complete, reply.body) == (200, True, body)
    assert [event.data.decode() for event in reply.events] == [
        text.strip().encode().strip().decode() for text in events
    ]
    times = [event.at for event in reply.events]
    assert all(a <= b for a, b in pairwise(times))
    arrived, there = {}, b""
    for at, part in parts:
        there += part
        arrived[at] = there
    assert reply.head_at is not None
    assert HEAD in arrived[reply.head_at]
    assert not reply.head_at or HEAD not in arrived[reply.head_at - 1]


def test_an_event_has_the_moment_of_its_last_byte() -> None:
    raw = [HEAD, b"7\r\ndata: a\r\n", b"2\r\n\n\n", b"\r\n9\r\ndata: b\n\n\r\n", b"0\r\n\r\n"]
    reply = read_reply(0.0, 9.0, list(enumerate(raw)), left=False)
    assert [(event.at, event.data) for event in reply.events] == [(2, b"a"), (3, b"b")]
    assert reply.head_at == 0


@pytest.mark.parametrize("missing", range(1, len(HEAD) + 20, 9))
def test_an_answer_that_breaks_off_is_not_complete(missing: int) -> None:
    raw = HEAD + chunked([b"data: one\n\n", b"data: two\n\n"])
    reply = read_reply(0.0, 9.0, [(1.0, raw[:-missing])], left=False)
    assert not reply.complete
    assert read_reply(0.0, 9.0, [(1.0, raw)], left=False).complete


def test_a_whole_body_is_read_by_its_length() -> None:
    raw = b"HTTP/1.1 429 Too Many\r\nContent-Length: 5\r\nRetry-After: 3\r\n\r\nhello"
    reply = read_reply(0.0, 9.0, [(1.0, raw)], left=False)
    assert (reply.status, reply.body, reply.complete, reply.headers["retry-after"]) == (429, b"hello", True, "3")
    assert not read_reply(0.0, 9.0, [(1.0, raw[:-1])], left=False).complete
    assert read_reply(0.0, 9.0, [], left=False).status == 0


def against(answer: Answer, ask_it: Callable[[Address], Awaitable[list[Reply]]]) -> list[Reply]:
    """What clients get of a real socket."""

    async def run() -> list[Reply]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            return await ask_it((host, port))

    return asyncio.run(run())


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Events until the client hangs up."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(HEAD)
    try:
        while not reader.at_eof():
            writer.write(b"9\r\ndata: x\n\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)
    except ConnectionError:
        pass
    finally:
        writer.close()


def test_a_client_leaves_when_it_has_been_told_to() -> None:
    async def both(address: Address) -> list[Reply]:
        posts = (Post("/", b"{}", leave_after=3), Post("/", b"{}", leave_after_s=0.1))
        return [await ask(address, post) for post in posts]

    counted, timed = against(endless, both)
    assert counted.left
    assert 3 <= len(counted.events) < 20
    assert timed.left
    assert not timed.complete
    assert 0.1 <= timed.ended_at - timed.sent_at < 60


def test_requests_arrive_when_they_are_due() -> None:
    """Not before, and nobody waits for an earlier one to end: none does before the last one has come."""
    begun, there, all_there = list[float](), list[bytes](), asyncio.Event()

    async def together(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there.append(await reader.readuntil(b"\r\n\r\n"))
        if len(there) == 3:
            all_there.set()
        await all_there.wait()
        writer.write(HEAD + chunked([b"data: x\n\n"]))
        writer.close()

    async def one(address: Address) -> list[Reply]:
        begun.append(time.perf_counter())
        posts = [Post("/", b"{}", leave_after_s=60)] * 3
        return await arrive(posts, [0.0, 0.05, 0.05], lambda post: ask(address, post))

    replies = against(together, one)
    assert all(reply.complete for reply in replies)
    assert all(reply.sent_at >= begun[0] + due for reply, due in zip(replies, (0.0, 0.05, 0.1), strict=True))


def test_nobody_there() -> None:
    [[reply]] = run_clients(("127.0.0.1", 9), [[Post("/", b"{}")]])
    assert (reply.status, reply.complete, reply.left) == (0, False, False)
