"""News of a request for a reader in an event loop.

In: a request and the runner that advances it. Out: `wait`, which returns when there is news. Knows nothing about what
the news is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edge.runtime.request import Request
from edge.runtime.runner import Runner


class AsyncNews:
    """Made and awaited in one event loop. From now on, the request is computed to its end."""

    def __init__(self, request: Request, runner: Runner) -> None:
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        self._loop, self._request, self._event = loop, request, event
        # The watch refers to neither this nor the stream, so that both can be freed.
        self._watch = runner.watch(request, lambda: _set(loop, event))

    async def wait(self) -> None:
        """Return when the request has a chunk or has ended."""
        while not self._request.has_news:
            self._event.clear()
            self._watch.told = False
            if self._request.has_news:  # it came before the reset, so nobody tells of it
                return
            await self._event.wait()

    def call_elsewhere(self, function: Callable[[], None]) -> bool:
        """Call a function in another thread than the event loop's, soon; False if the loop has ended."""
        if self._loop.is_closed():
            return False
        try:
            self._loop.call_soon_threadsafe(self._loop.run_in_executor, None, function)
        except RuntimeError:
            return False
        return True


def _set(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)
