"""A request of another protocol that was converted to a chat: what is the same whichever protocol it was.

In: a `ChatRequest`, and the places that its parts came from. Out: its streams and errors, in terms of the body that was
sent. Knows nothing about the body.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from edge.runtime.errors import EdgeError
from edge.runtime.llm import LLM
from edge.runtime.settings import UsualSampling
from edge.runtime.stream import Stream
from edge.runtime.vision.progress import OnPicture
from edge.wire.answers import Head
from edge.wire.chat_request import ChatRequest
from edge.wire.pictures import WirePicture
from edge.wire.places import Places
from edge.wire.settings import RequestSettings


@dataclass(frozen=True, slots=True)
class ConvertedRequest:
    """Base of converted requests."""

    chat: ChatRequest
    places: Places

    @property
    def settings(self) -> RequestSettings:
        """What it says about its answer."""
        return self.chat.settings

    @property
    def pictures(self) -> tuple[WirePicture, ...] | None:
        """What is to be looked at; None before `opened`."""
        return self.chat.pictures

    def opened(self, llm: LLM) -> Self:
        """Return the request with its pictures decoded, for the errors that this finds. Raises RequestError."""
        with self.places.translating():
            return replace(self, chat=self.chat.opened(llm))

    def fitted(self, llm: LLM) -> Self:
        """Return the request without the oldest turns that do not fit the model's context. Raises as `start`."""
        with self.places.translating():
            return replace(self, chat=self.chat.fitted(llm))

    def start(self, llm: LLM, sampling: UsualSampling = "greedy", on_picture: OnPicture | None = None) -> list[Stream]:
        """Return the stream of the answer. Raises RequestError, or an EdgeError that is not about it."""
        if self.pictures is None:
            return self.opened(llm).start(llm, sampling, on_picture)
        with self.places.translating():
            return self.chat.start(llm, sampling, on_picture)

    def refusal(self, error: EdgeError) -> EdgeError:
        """Return an error that ended an answer in terms of the body, or as it is if the body is not to blame."""
        return self.places.told(self.chat.refusal(error))

    def told(self, head: Head) -> Head:
        """Return the beginning of an answer with what became of the conversation."""
        return replace(head, dropped_messages=self.chat.dropped_messages)
