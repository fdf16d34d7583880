"""Server-sent events: bytes for events, and signs of life between them.

In: events. Out: ASGI messages. Knows nothing about what the events say.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable

from starlette.types import Send

from edge.wire.events import Event

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the answer
]
PING = b": ping\n\n"


class SlowReaderError(Exception):
    """The client has taken nothing for too long."""


def encoded(event: Event) -> bytes:
    """Return an event as it is sent."""
    data = event.data if isinstance(event.data, str) else json.dumps(event.data, ensure_ascii=False, allow_nan=False)
    name = f"event: {event.name}\n" if event.name else ""
    return f"{name}data: {data}\n\n".encode()


class EventStream:
    """One response. Used in a `with` block of the task that sends; pings are sent beside it, by a clock."""

    def __init__(self, send: Send, ping_s: float, send_timeout_s: float) -> None:
        self._send, self._ping_s, self._send_timeout_s = send, ping_s, send_timeout_s
        self._last = time.monotonic()  # when something was sent
        self._pinger: asyncio.Task[None] | None = None
        self._free = asyncio.Lock()

    async def open(self) -> None:
        """Send the headers, so that the client knows at once that it is being answered."""
        await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await self._send({"type": "http.response.body", "body": PING, "more_body": True})
        self._pinger = asyncio.create_task(self._ping())

    async def send(self, events: Iterable[Event]) -> None:
        """Send events, as one message. Raises SlowReaderError if the client does not take them."""
        if data := b"".join(map(encoded, events)):
            await self._put(data)

    async def close(self) -> None:
        """End the response."""
        self.stop()
        await self._put(b"", more=False)

    def stop(self) -> None:
        """Send no more pings."""
        if self._pinger is not None:
            self._pinger.cancel()

    async def _put(self, data: bytes, *, more: bool = True) -> None:
        async with self._free:
            message = {"type": "http.response.body", "body": data, "more_body": more}
            try:
                async with asyncio.timeout(self._send_timeout_s):
                    await self._send(message)
            except TimeoutError:
                raise SlowReaderError from None
            self._last = time.monotonic()

    async def _ping(self) -> None:
        while True:
            silent = time.monotonic() - self._last
            if silent < self._ping_s:
                await asyncio.sleep(self._ping_s - silent)
            elif self._free.locked():  # a client that takes nothing needs no ping
                await asyncio.sleep(self._ping_s)
            else:
                await self._put(PING)
