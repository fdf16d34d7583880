"""One call of a tool, run: whatever goes wrong becomes text for the model.

In: a call and the tools. Out: text, and whether it says what went wrong. Knows nothing about models or conversations.
Nothing is lost by an error but the call: the model reads what was wrong and may call again. Ctrl-C is no such error.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from edge.runtime.errors import EdgeError, PromptError, in_words, shown
from edge.runtime.messages import ToolCall
from edge.tools.tool import Tool

MAX_ERROR = 500  # characters of what went wrong


def run_call(call: ToolCall, tools: Mapping[str, Tool]) -> tuple[str, bool]:
    """Run a call in this thread; an async function in a thread of its own, since an event loop may run in this one."""
    try:
        found = _started(call, tools)
        return _text(_awaited(found) if inspect.isawaitable(found) else found), False
    except Exception as error:  # of anybody's function
        return error_text(error), True


async def run_call_async(call: ToolCall, tools: Mapping[str, Tool]) -> tuple[str, bool]:
    """Run a call in another thread; an async function in this event loop."""

    def started() -> object:
        try:
            return _started(call, tools)
        except Exception as error:  # kept from asyncio, which waits forever for a thread that raised StopIteration
            return error

    try:
        found = await asyncio.to_thread(started)
        if isinstance(found, Exception):
            raise found
        return _text(await found if inspect.isawaitable(found) else found), False
    except Exception as error:  # of anybody's function
        return error_text(error), True


def error_text(error: Exception) -> str:
    """Return what a model is told of an error: no traceback, which would tell it of files."""
    words = in_words(error, MAX_ERROR)
    if isinstance(error, EdgeError):
        return f"Error: {words}"
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _started(call: ToolCall, tools: Mapping[str, Tool]) -> object:
    """Run a call as far as it goes without waiting. Raises PromptError for one that no tool can answer."""
    tool = tools.get(call.name)
    if tool is None:
        raise PromptError(f"there is no tool {shown(call.name)}; there are {', '.join(tools) or 'none'}")
    arguments = call.parsed()
    if arguments is None:
        raise PromptError(f"the arguments are {shown(call.arguments)}, expected one JSON object")
    return tool.run(arguments)


def _text(found: object) -> str:
    if not isinstance(found, str):
        raise TypeError(f"the tool returned {shown(found)}, expected text")
    return found


def _awaited(found: Awaitable[object]) -> object:
    """Wait for an awaitable in a thread and an event loop of its own; an interrupt cancels it."""
    running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Future[Any]]] = Future()

    async def wait() -> object:
        task = asyncio.ensure_future(found)
        running.set_result((asyncio.get_running_loop(), task))
        try:
            return await task
        except asyncio.CancelledError:
            raise RuntimeError("the tool was cancelled") from None

    with ThreadPoolExecutor(1, "edge-tool") as threads:
        result = threads.submit(contextvars.copy_context().run, asyncio.run, wait())
        try:
            return result.result()
        except BaseException:
            if not result.done():
                loop, task = running.result()
                with suppress(RuntimeError):  # it has ended by now
                    loop.call_soon_threadsafe(task.cancel)
            raise
