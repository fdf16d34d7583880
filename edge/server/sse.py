"""Server-sent events: bytes for events, and signs of life between them.

In: events. Out: ASGI messages. Knows nothing about what the events say, or how long a client may take nothing of them:
its connection ends then (`protocol`).
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
_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode  # making one takes longer


def encoded(event: Event) -> bytes:
    """Return an event as it is sent."""
    data = event.data if isinstance(event.data, str) else _json(event.data)
    name = f"event: {event.name}\n" if event.name else ""
    return f"{name}data: {data}\n\n".encode()


class EventStream:
    """One response. Used in a `with` block of the task that sends; pings are sent beside it, by a clock."""

    def __init__(self, send: Send, ping_s: float) -> None:
        self._send, self._ping_s = send, ping_s
        self._last = time.monotonic()  # when something was sent
        self._pinger: asyncio.Task[None] | None = None
        self._is_sending = False

    async def open(self) -> None:
        """Send the headers, so that the client knows at once that it is being answered."""
        await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await self._send({"type": "http.response.body", "body": PING, "more_body": True})
        self._pinger = asyncio.create_task(self._ping())

    async def send(self, events: Iterable[Event]) -> None:
        """Send events, as one message. Waits for a client that is slow in taking them."""
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
        self._is_sending = True
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
        finally:
            self._is_sending = False
        self._last = time.monotonic()

    async def _ping(self) -> None:
        while True:
            silent = time.monotonic() - self._last
            if silent < self._ping_s:
                await asyncio.sleep(self._ping_s - silent)
            elif self._is_sending:  # a client that takes nothing needs no ping
                await asyncio.sleep(self._ping_s)
            else:
                await self._send({"type": "http.response.body", "body": PING, "more_body": True})
                self._last = time.monotonic()
