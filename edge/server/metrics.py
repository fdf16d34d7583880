"""Counts and times of what the server does, for /metrics.

In: events of requests. Out: text. Knows nothing about HTTP.
"""

from __future__ import annotations

from typing import Literal

from edge.runtime.chunk import Stats

Outcome = Literal["ok", "error", "refused", "cancelled"]


class Metrics:
    """Every method is cheap, and called in the event loop."""

    def started(self, endpoint: str) -> None:
        """Count a request."""

    def first_token(self, seconds: float) -> None:
        """Record the time from a request to its first token."""

    def gap(self, seconds: float) -> None:
        """Record the time between two tokens of an answer."""

    def answered(self, stats: Stats) -> None:
        """Count the tokens of an answer that ended."""

    def disconnected(self) -> None:
        """Count a client that left."""

    def ended(self, endpoint: str, outcome: Outcome) -> None:
        """Count the end of a request."""

    def text(self) -> bytes:
        """Return all of it in Prometheus' format."""
        return b""
