"""What a streamed answer is made of: events, and what makes them of a model's chunks.

In: nothing. Out: the types that a protocol's file and the server share. Knows nothing about sockets or single
protocols.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from edge.runtime.chunk import Chunk
from edge.runtime.vision.progress import PictureProgress
from edge.wire.answers import JsonBody
from edge.wire.errors import ErrorAnswer


class Event(NamedTuple):
    """One server-sent event."""

    data: JsonBody | str  # a text is sent as it is, like "[DONE]"
    name: str | None = None  # of its `event:` line


class AnswerEvents(Protocol):
    """The answers to one request, as events of one protocol. Each method is called by one reader, in order."""

    def begin(self) -> Iterable[Event]:
        """Return what comes before any token is computed."""

    def looking(self, progress: PictureProgress) -> Iterable[Event]:
        """Return what news of a picture become, before the first chunk."""

    def push(self, index: int, chunk: Chunk) -> Iterable[Event]:
        """Return what a chunk of one choice becomes. The last chunk of a choice has a finish reason."""

    def end(self) -> Iterable[Event]:
        """Return what comes after every choice has ended. Raises RequestError if nothing could be sent in time."""

    def fail(self, told: ErrorAnswer) -> Iterable[Event]:
        """Return what tells of an error in a started stream. Nothing follows."""
