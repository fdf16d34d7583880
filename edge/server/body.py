"""The body of a request, read within limits of type, size and time.

In: an ASGI scope and its `receive`. Out: bytes. Knows nothing about what is in them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers
from starlette.types import Receive

from edge.runtime.errors import shown
from edge.server.leaving import ClientLeft
from edge.wire.errors import NOT_JSON, TOO_LARGE, TOO_SLOW, RequestError

JSON, BYTES = "application/json", "application/octet-stream"


async def read_body(
    headers: Headers,
    receive: Receive,
    *,
    max_bytes: int,
    timeout_s: float,
    content_type: str = JSON,
    grown: Callable[[int], None] | None = None,
) -> bytes:
    """Return the body. Raises RequestError, as far as possible before anything is read, and ClientLeft.

    grown: is told the size of each part; what it raises ends the reading.
    """
    _check_type(headers, content_type)
    _check_length(headers, max_bytes)
    found, size = [], 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                part = message.get("body", b"")
                size += len(part)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                if grown is not None:
                    grown(len(part))
                found.append(part)
                if not message.get("more_body", False):
                    return b"".join(found)
    except TimeoutError:
        raise RequestError(
            f"the body did not arrive within {timeout_s:g} s", code="request_timeout", status=TOO_SLOW
        ) from None


def _check_type(headers: Mapping[str, str], expected: str) -> None:
    """A page of another site can send other types without asking first."""
    given = headers.get("content-type", "")
    if given.split(";")[0].strip().lower() != expected:
        raise RequestError(
            f"the content type is {shown(given)}, expected {expected}; send this header: content-type: {expected}",
            code="unsupported_media_type",
            status=NOT_JSON,
        )


def _check_length(headers: Mapping[str, str], max_bytes: int) -> None:
    told = headers.get("content-length", "")
    if told.isdecimal() and int(told[:20]) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(
        f"the body has more than {max_bytes:,} bytes; send less", code="request_too_large", status=TOO_LARGE
    )
