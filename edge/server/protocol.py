"""HTTP/1.1 connections with limits: uvicorn's h11 protocol, which has none of its own.

In: `ConnectionLimits`. Out: a class for uvicorn's `Config(http=...)`. Knows nothing of requests that can be read,
but for those that two servers might read differently.

    before a request    headers have a limit of size and of time, from the connection or from a request's first byte
    not HTTP            an error body like that of every other error, then the end of the connection
    one too many        takes the place of one that is idle, or is answered with 503 and closed; so is what the system's
                        own limit of open files leaves no room for
    an answer           a client that takes no byte of it for a while is cut off
    a refused body      is read and thrown away for a moment: a client that is still sending would see a reset
                        connection in the place of its error

`Config` needs server_header=False and ws="none" beside it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from edge.server.refusals import ENDING, NO_WEBSOCKET, TOO_LONG, TOO_MANY, TOO_SLOW, Refusal, not_http

logger = logging.getLogger(__name__)

_VERSIONS = (b"1.0", b"1.1")
_LINGER_S = 2.0  # for what a client still sends after its error
_LINGER_BYTES = 64 * 2**20  # a client may send a body of a few times the limit before it reads
_MAX_LINGERING = 16  # refused connections that are still open
_MAX_PIPELINED = 64 * 2**10  # bytes of further requests that are kept while an answer runs
_SEND_BUFFER = 256 * 2**10  # of the system: one that grows to megabytes hides for minutes that a client reads slowly
_TLS_HANDSHAKE = b"\x16\x03"
_HTTP_ONLY = "this server speaks HTTP, not HTTPS; write http:// in the address"
_NOT_HTTP = "what was sent is not an HTTP/1.1 request"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection, and all of them together, may take."""

    max_connections: int = 256
    header_timeout_s: float = 10
    write_timeout_s: float = 60  # without one byte taken
    max_header_bytes: int = 32 * 2**10  # of a request line and its headers


class _Alarm:
    """A call that comes later, unless it is stopped before."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        return self._handle is not None

    def start(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], None]) -> None:
        self.stop()
        self._handle = loop.call_later(seconds, call)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class _Connection(h11.Connection):
    """Requests as h11 reads them, without those that others might read differently; keeps why one was refused."""

    def __init__(self, max_header_bytes: int) -> None:
        super().__init__(h11.SERVER, max_header_bytes)
        self.max_header_bytes = max_header_bytes
        self.refusal: Refusal | None = None

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        in_headers = self.their_state is h11.IDLE
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.refusal = self._why(error, in_headers)
            raise
        if isinstance(event, h11.Request):
            self.refusal = self._refusal_of(event)
            if self.refusal is not None:
                raise h11.RemoteProtocolError(self.refusal.message)
        return event

    def _why(self, error: h11.RemoteProtocolError, in_headers: bool) -> Refusal:
        if in_headers and error.error_status_hint == TOO_LONG.status:
            return TOO_LONG
        tls = in_headers and self.trailing_data[0].startswith(_TLS_HANDSHAKE)
        return not_http(_HTTP_ONLY if tls else _NOT_HTTP)

    def _refusal_of(self, request: h11.Request) -> Refusal | None:
        if request.http_version not in _VERSIONS:
            return not_http("the version of HTTP is neither 1.0 nor 1.1")
        size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
        if size > self.max_header_bytes:
            return TOO_LONG  # h11 counts only what is still incomplete
        names = {name for name, _ in request.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            return not_http("the length of the body is given twice, by Content-Length and by Transfer-Encoding")
        if any(name == b"upgrade" and value.lower() == b"websocket" for name, value in request.headers):
            return NO_WEBSOCKET
        return None


class LimitedH11Protocol(H11Protocol):
    """One connection. `limited_protocol` gives the class its limits."""

    limits = ConnectionLimits()
    lingering: set[LimitedH11Protocol]  # refused ones that are still open; not counted as connections

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],  # Any: uvicorn's
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = logger  # what clients do wrong is told where this package's other news is, or nowhere
        self.conn: _Connection = _Connection(self.limits.max_header_bytes)
        self._headers, self._reader, self._rest = _Alarm(), _Alarm(), _Alarm()  # what is waited for
        self._thrown_away = 0  # bytes
        self._leaving = False  # everything has been said; what still comes is thrown away

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        direct = cast("asyncio.Transport", transport)
        direct.set_write_buffer_limits(high=0)  # so that `pause_writing` tells of every byte that is not taken
        direct.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._direct = direct
        super().connection_made(cast("asyncio.Transport", _ClosingGently(direct, self._close, self._is_closing)))
        if len(self.connections) > self.limits.max_connections and not self._make_room():
            self.connections.discard(self)
            self._refuse(TOO_MANY)
            return
        self._headers.start(self.loop, self.limits.header_timeout_s, self._headers_too_late)

    def data_received(self, data: bytes) -> None:
        if self._rest.is_set:
            self._thrown_away += len(data)
            if self._thrown_away > _LINGER_BYTES:
                self._direct.abort()
        if self._leaving:
            return
        super().data_received(data)
        if self._rest.is_set and self.conn.their_state is not h11.SEND_BODY and not self._leaving:
            self._rest.stop()  # the rest of the body was short
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        for alarm in (self._headers, self._reader, self._rest):
            alarm.stop()
        self.lingering.discard(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        self._reader.stop()
        super().resume_writing()

    # What uvicorn tells

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # always the same
        """Answer in the server's own shape. uvicorn calls this for everything that `conn` refuses."""
        self._refuse(self.conn.refusal or not_http(_NOT_HTTP))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_closing():
            return
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY:
            # Answered before its end. A short rest is thrown away, and the connection goes on.
            self._thrown_away = 0
            self._rest.start(self.loop, _LINGER_S, self._direct.abort)
        self._watch()

    def shutdown(self) -> None:
        """End the connection, now or after its answer. What has not come whole is not waited for."""
        half = self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.SEND_RESPONSE
        if self._leaving:
            self._direct.close()
        elif half or (self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]):
            self._refuse(ENDING)
        else:
            super().shutdown()

    def _should_upgrade(self) -> bool:
        return False  # websockets are refused before this, and any other upgrade may be ignored

    # Steps

    def _watch(self) -> None:
        """Start or end the time of headers, after anything has changed."""
        if self._leaving:
            return
        pending = len(self.conn.trailing_data[0])
        if self.conn.their_state is not h11.IDLE:
            self._headers.stop()
            # While an answer runs, uvicorn stops reading at the first byte of a further request. Then a client that
            # leaves would not be noticed.
            if self.conn.their_state is not h11.SEND_BODY and pending < _MAX_PIPELINED:
                self.flow.resume_reading()
        elif pending and not self._headers.is_set:
            self._unset_keepalive_if_required()
            self._headers.start(self.loop, self.limits.header_timeout_s, self._headers_too_late)

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest, between two requests; False if none is."""
        idle = [
            (one.timeout_keep_alive_task.when(), number, one)
            for number, one in enumerate(self.connections)
            if isinstance(one, LimitedH11Protocol) and one.timeout_keep_alive_task is not None
        ]
        if idle:
            _, _, longest = min(idle)
            self.connections.discard(longest)  # now: its transport tells of its end later
            longest.timeout_keep_alive_handler()
        return bool(idle)

    def _headers_too_late(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(TOO_SLOW)
        else:  # a browser opens connections that it may never use
            self._direct.close()

    def _wait_for_reader(self) -> None:
        left = self._direct.get_write_buffer_size()
        self._reader.start(self.loop, self.limits.write_timeout_s, partial(self._look_at_reader, left))

    def _look_at_reader(self, before: int) -> None:
        if self._direct.get_write_buffer_size() < before:
            self._wait_for_reader()
        else:
            self.logger.info("A client has taken nothing for %g s; it is cut off.", self.limits.write_timeout_s)
            self._direct.abort()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer, if nothing has been answered, and end the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # whoever works at an answer hears that nobody waits for it
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._direct.write(refusal.to_bytes())
        self._leave()

    def _close(self) -> None:
        """End the connection for uvicorn, after all has been written."""
        if self.conn.their_state is h11.SEND_BODY:
            self._leave()
        else:
            self._direct.close()

    def _is_closing(self) -> bool:
        return self._leaving or self._direct.is_closing()

    def _leave(self) -> None:
        """Close after the client has read: what is unread when a socket closes resets the connection."""
        if self._is_closing():
            return
        self._leaving = True
        self._headers.stop()
        self._unset_keepalive_if_required()
        if len(self.lingering) >= _MAX_LINGERING or not self._direct.can_write_eof():
            self._direct.close()
            return
        self.lingering.add(self)
        self._direct.write_eof()
        self._direct.resume_reading()
        self._thrown_away = 0
        self._rest.start(self.loop, _LINGER_S, self._direct.abort)


class _ClosingGently:
    """A transport that closes by way of its protocol. uvicorn closes right after an answer, whatever still comes in."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None], is_closing: Callable[[], bool]) -> None:
        self._transport = transport
        self.close = close
        self.is_closing = is_closing

    def __getattr__(self, name: str) -> Any:  # Any: the transport's attributes
        return getattr(self._transport, name)


def limited_protocol(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """Return the protocol with these limits, for `uvicorn.Config(http=...)`. One for each server."""

    class Limited(LimitedH11Protocol):
        lingering: set[LimitedH11Protocol] = set()  # noqa: RUF012  # one for each class, which is one for each server

    Limited.limits = limits
    return Limited
