"""What the server needs from a request of any protocol.

In: nothing. Out: the `WireRequest` protocol. Knows nothing about single protocols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

from edge.runtime.chunk import Answer
from edge.runtime.errors import EdgeError
from edge.runtime.llm import LLM
from edge.runtime.settings import UsualSampling
from edge.runtime.stream import Stream
from edge.runtime.tools.declared import JsonObject
from edge.runtime.vision.progress import OnPicture
from edge.wire.answers import Head, JsonBody
from edge.wire.events import AnswerEvents
from edge.wire.pictures import WirePicture
from edge.wire.settings import RequestSettings


class WireRequest(Protocol):
    """A checked body."""

    @property
    def settings(self) -> RequestSettings:
        """What it says about its answers."""

    @property
    def pictures(self) -> tuple[WirePicture, ...] | None:
        """What is to be looked at; None before `opened`."""

    @classmethod
    def from_body(cls, body: JsonObject) -> Self:
        """Raises RequestError for everything that is wrong whatever the model."""

    def opened(self, llm: LLM) -> Self:
        """Return the request with its pictures decoded, for the errors that this finds. Raises RequestError."""

    def fitted(self, llm: LLM) -> Self:
        """Return the request without the oldest turns that do not fit the model's context."""

    def start(self, llm: LLM, sampling: UsualSampling = "greedy", on_picture: OnPicture | None = None) -> list[Stream]:
        """Return a stream for each choice, all submitted. Raises RequestError, or an EdgeError that is not about it.

        sampling: where that comes from which the body does not set. on_picture: is told while a picture is
        looked at.
        """

    def answer(self, head: Head, answers: Sequence[Answer], llm: LLM) -> JsonBody:
        """Return the body of a whole answer. Raises RequestError if a deadline left nothing to send."""

    def events(self, head: Head, llm: LLM) -> AnswerEvents:
        """Return what makes the events of a streamed answer."""

    def refusal(self, error: EdgeError) -> EdgeError:
        """Return an error that ended an answer in terms of the body, or as it is if the body is not to blame."""
