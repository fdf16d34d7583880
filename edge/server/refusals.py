"""Answers to what never becomes a request: bytes that are not HTTP, headers without an end, one connection too many.

In: what is wrong. Out: the bytes of an answer with an error body in the shape of every other error. Knows nothing of
endpoints; a request that can be read is refused by the guard or by its endpoint.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from http import HTTPStatus

from edge.wire.errors import Code, ErrorAnswer

TOO_MANY_S = 1  # when to come back, if no connection is free: they are short, but for answers


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a connection is closed without its request having been looked at."""

    status: HTTPStatus
    code: Code
    message: str
    retry_after_s: int | None = None

    def to_bytes(self) -> bytes:
        """Return the whole answer."""
        body = json.dumps(ErrorAnswer(self.status, self.message, self.code).to_dict()).encode()
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: {new_request_id()}",
            "cache-control: no-store",
            "x-content-type-options: nosniff",
            "connection: close",
        ]
        if self.retry_after_s is not None:
            lines.append(f"retry-after: {self.retry_after_s}")
        return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def new_request_id() -> str:
    """Return an id for an answer and for what the log says of it."""
    return f"req_{secrets.token_hex(12)}"


def not_http(message: str) -> Refusal:
    """Refuse what cannot be read. The message never repeats what was sent: it may hold a key."""
    return Refusal(HTTPStatus.BAD_REQUEST, "invalid_http", message)


TOO_MANY = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE, "too_many_connections", "all connections are in use; try again soon", TOO_MANY_S
)
ENDING = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE, "shutting_down", "this server is shutting down; try again when it is back", 5
)
TOO_SLOW = Refusal(
    HTTPStatus.REQUEST_TIMEOUT,
    "request_timeout",
    "the headers of the request did not arrive in time; send them at once",
)
TOO_LONG = Refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "headers_too_large",
    "the request line and the headers are too long; send fewer or shorter headers, and what is long in the body",
)
NO_WEBSOCKET = Refusal(
    HTTPStatus.BAD_REQUEST,
    "unsupported_upgrade",
    "websockets are not served here; send a POST with stream set to true, whose answer is a stream of events",
)
