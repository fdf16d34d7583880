"""Errors as responses: one JSON shape on every path, with the headers that clients act upon.

In: an `ErrorAnswer`, or an exception. Out: a response. Knows nothing about what went wrong.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import JSONResponse, Response

from edge.wire.answers import JsonBody
from edge.wire.errors import INTERNAL, TOO_LATE, UNAUTHORIZED, ErrorAnswer, error_answer

ErrorBody = Callable[[ErrorAnswer], JsonBody]
RETRY_S = 5  # where the server cannot tell when it will have room


def error_response(told: ErrorAnswer, body: ErrorBody = ErrorAnswer.to_dict) -> Response:
    """Return an error. body: makes what a protocol expects."""
    headers: dict[str, str] = {}
    if told.retry_after_s is not None:
        headers["retry-after"] = str(told.retry_after_s)
    if told.status == UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    if told.status in (INTERNAL, TOO_LATE):
        headers["x-should-retry"] = "false"  # it would take as long again, and end the same way
    return JSONResponse(body(told), told.status, headers)


def response_of(error: BaseException, body: ErrorBody = ErrorAnswer.to_dict) -> Response:
    """Return an exception as a response; what is nobody's business goes into the log alone."""
    return error_response(error_answer(error), body)
