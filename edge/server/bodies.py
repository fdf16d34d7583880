"""How much of requests is held at once, in bytes of their bodies: few can be large, or many small.

In: sizes, as bodies arrive. Out: a refusal for one that would be too much. Knows nothing about what is in them.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from edge.server.errors import RETRY_S
from edge.wire.errors import TOO_MANY, RequestError


class Bodies:
    """Bytes of all bodies that are being read, or whose requests are being answered."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    @contextmanager
    def taking(self) -> Generator[Taken]:
        """Hold a body until the end of the block."""
        taken = Taken(self)
        try:
            yield taken
        finally:
            self.held -= taken.size

    def hold(self, size: int) -> None:
        """Raise RequestError if there is no room for so many bytes more."""
        if self.held + size > self._limit:
            raise RequestError(
                f"other requests hold {self.held:,} of {self._limit:,} bytes already; try again later",
                code="queue_full",
                status=TOO_MANY,
                retry_after_s=RETRY_S,
            )
        self.held += size


class Taken:
    """One body."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self.size = bodies, 0

    def grown(self, size: int) -> None:
        """Count a part that arrived. Raises RequestError if there is no room for it."""
        self._bodies.hold(size)
        self.size += size
