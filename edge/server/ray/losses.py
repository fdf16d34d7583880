"""What a reader is told of replicas that are not there, or are there no more.

In: what happened. Out: errors of the wire, and a line for the log. Knows nothing about Ray.
"""

from __future__ import annotations

from edge.server.errors import RETRY_S
from edge.wire.errors import UNAVAILABLE, RequestError


def nobody(message: str) -> RequestError:
    """Return the error for a request that no replica took."""
    return RequestError(message, code="loading", status=UNAVAILABLE, retry_after_s=RETRY_S)


def lost_error(message: str) -> RequestError:
    """Return the error for an answer whose rest is lost."""
    return RequestError(
        f"{message}; send the request again", code="replica_lost", status=UNAVAILABLE, retry_after_s=RETRY_S
    )


def line_of(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
