"""Errors as clients of OpenAI's protocol expect them: a status, and an object with message, type, param and code.

In: an EdgeError, or any exception. Out: an `ErrorAnswer`. Knows nothing about HTTP beyond the number of a status.

    400  invalid_request_error  a request that is wrong; `code` says in what way, `param` where
    401  authentication_error   no key, or a wrong one
    403  permission_error       from a page of another site, or for another host
    404, 405, 408, 413, 415, 431  invalid_request_error  a request that HTTP or the server's limits refuse
    429  rate_limit_error       too many requests wait already
    503  server_error           the model is loading, closed or has no room now: the same request may work later
    504  server_error           the deadline passed before the first token
    500  server_error           everything else
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edge.runtime.errors import CacheFullError, ClosedError, ContextLengthError, EdgeError, GenerationError

Code = Literal[
    "invalid_json",
    "missing_required_parameter",
    "invalid_type",
    "invalid_value",
    "unknown_parameter",
    "unsupported_parameter",
    "unsupported_content",
    "invalid_messages",
    "invalid_schema",
    "context_length_exceeded",
    "model_not_found",
    "invalid_api_key",
    "host_not_allowed",
    "origin_not_allowed",
    "not_found",
    "method_not_allowed",
    "request_timeout",
    "request_too_large",
    "unsupported_media_type",
    "headers_too_large",
    "invalid_http",
    "unsupported_upgrade",
    "queue_full",
    "deadline_exceeded",
    "cache_full",
    "loading",
    "stalled",
    "replica_lost",
    "too_many_connections",
    "shutting_down",
    "internal_error",
]
BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, NOT_ALLOWED, TOO_SLOW = 400, 401, 403, 404, 405, 408
TOO_LARGE, NOT_JSON, TOO_MANY, HEADERS_TOO_LARGE = 413, 415, 429, 431
INTERNAL, UNAVAILABLE, TOO_LATE = 500, 503, 504
_TYPES = {UNAUTHORIZED: "authentication_error", FORBIDDEN: "permission_error", TOO_MANY: "rate_limit_error"}

_UNTOLD = "something went wrong while this was answered; the log says what"

logger = logging.getLogger(__name__)


class RequestError(GenerationError):
    """A request that the protocol refuses."""

    def __init__(
        self,
        message: str,
        *,
        code: Code,
        param: str | None = None,
        status: int = BAD_REQUEST,
        figures: Mapping[str, int] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message, param=param)
        self.code = code
        self.status = status
        self.figures = figures or {}  # further keys of the error object
        self.retry_after_s = retry_after_s  # when the same request may work; None: the server does not know


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error on its way to a client."""

    status: int
    message: str
    code: Code
    param: str | None = None
    figures: Mapping[str, int] = field(default_factory=dict)
    retry_after_s: int | None = None

    @property
    def type(self) -> str:
        """Whose fault it is, in the protocol's words."""
        return _TYPES.get(self.status, "invalid_request_error" if self.status < INTERNAL else "server_error")

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """Return the body of the answer."""
        known = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {**known, **self.figures}}


def error_answer(error: BaseException, *, private: bool = False) -> ErrorAnswer:
    """Return what a client is told.

    private: the client is the user of this machine, who is told what failed inside, too; others find it in the log.
    """
    if isinstance(error, RequestError):
        return ErrorAnswer(error.status, str(error), error.code, error.param, error.figures, error.retry_after_s)
    if isinstance(error, ContextLengthError):
        return ErrorAnswer(BAD_REQUEST, str(error), "context_length_exceeded", error.param)
    if isinstance(error, ClosedError):
        return ErrorAnswer(UNAVAILABLE, str(error), "shutting_down")
    if isinstance(error, CacheFullError):
        return ErrorAnswer(UNAVAILABLE, str(error), "cache_full")
    logger.error("a request failed", exc_info=error)
    return ErrorAnswer(INTERNAL, str(error) if private and isinstance(error, EdgeError) else _UNTOLD, "internal_error")
