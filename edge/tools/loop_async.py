"""A model that uses tools, in a program with an event loop: `run_loop_async`.

In and out: as `loop`, and the same events. The model's steps, and functions that are not async, run in other threads;
nothing blocks the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import suppress
from typing import TypeVar, Unpack

from edge.runtime.chunk import Chunk
from edge.runtime.llm import LLM
from edge.runtime.messages import MessageLike
from edge.runtime.session import ChatSession
from edge.runtime.settings import GenerationOptions
from edge.runtime.tools.choice import ToolChoiceLike
from edge.tools.calling import run_call_async
from edge.tools.events import Call, Event
from edge.tools.rounds import MAX_ROUNDS, Rounds, Tools

Found = TypeVar("Found")


def run_loop_async(
    model: LLM | ChatSession,
    messages: str | Sequence[MessageLike],
    tools: Tools = (),
    *,
    max_rounds: int = MAX_ROUNDS,
    tool_choice: ToolChoiceLike = "auto",
    **options: Unpack[GenerationOptions],
) -> AsyncGenerator[Event, None]:
    """Answer messages with tools as `run_loop` does, for `async for`. Cancelling the task ends the answer."""
    return _events(Rounds(model, messages, tools, max_rounds, tool_choice, options))


async def _events(rounds: Rounds) -> AsyncGenerator[Event, None]:
    while True:
        chunks = await _in_thread(rounds.ask)
        try:
            while (chunk := await _in_thread(lambda: _next(chunks))) is not None:  # noqa: B023  # awaited at once
                if (piece := rounds.read(chunk)) is not None:
                    yield piece
        finally:
            await _in_thread(chunks.close)
        rounds.end_answer()
        if rounds.done is not None:
            yield rounds.done
            return
        for call in rounds.calls:
            yield Call(call)
            text, is_error = await run_call_async(call, rounds.tools)
            yield await _in_thread(lambda: rounds.result(call, text, error=is_error))  # noqa: B023  # awaited at once


def _next(chunks: Generator[Chunk, None, None]) -> Chunk | None:
    return next(chunks, None)


async def _in_thread(work: Callable[[], Found]) -> Found:
    """Return what a function returns. When cancelled, wait until it ends: a generator cannot be closed before."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        running.exception()  # otherwise asyncio would log it as one that nobody has read
        raise
