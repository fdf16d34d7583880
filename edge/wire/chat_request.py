"""A body of /v1/chat/completions, as what `LLM.chat` takes.

In: a JSON object. Out: a `ChatRequest`, and streams of its answers. Messages and tools are checked by the runtime; what
it refuses is told in terms of the body. Knows nothing about how an answer is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from edge.runtime.chunk import Answer
from edge.runtime.errors import ContextLengthError, EdgeError
from edge.runtime.fitting import fitting
from edge.runtime.llm import LLM
from edge.runtime.messages import MessageLike, messages_from
from edge.runtime.produced_ids import ProducedIds
from edge.runtime.settings import GenerationOptions, UsualSampling
from edge.runtime.stream import Stream
from edge.runtime.tools.declared import JsonObject
from edge.runtime.vision.progress import OnPicture
from edge.wire.answers import Head, JsonBody, chat_completion
from edge.wire.body import in_terms_of, refusal_of
from edge.wire.chat_events import ChatEvents
from edge.wire.context import too_long
from edge.wire.errors import RequestError
from edge.wire.events import AnswerEvents
from edge.wire.fields import CHAT, read_fields
from edge.wire.pictures import WirePicture, with_pictures
from edge.wire.settings import RequestSettings, read_settings


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """Messages to answer, and how."""

    body: JsonObject
    settings: RequestSettings
    messages: Sequence[MessageLike]
    tools: Sequence[JsonObject] | None
    tool_choice: str | JsonObject
    template_variables: JsonObject | None
    continue_final_message: bool = False
    memory: ProducedIds | None = None  # as in `LLM.chat_samples`
    dropped_messages: int = 0  # for which the context had no room
    pictures: tuple[WirePicture, ...] | None = None  # in the messages, once those are opened

    @classmethod
    def from_body(cls, body: JsonObject) -> Self:
        """Raises RequestError for everything that is wrong whatever the model."""
        fields = read_fields(body, CHAT)
        if "messages" not in fields:
            raise RequestError("messages is missing", code="missing_required_parameter", param="messages")
        settings = read_settings(body, fields, CHAT, _logprobs(fields))
        tools = fields.get("tools")
        choice = fields.get("tool_choice", "auto")
        if tools is None and choice == "none":
            choice = "auto"  # nothing to choose from
        return cls(
            body, settings, fields["messages"], tools, choice, fields.get("chat_template_kwargs"), continues(fields)
        )

    def opened(self, llm: LLM) -> Self:
        """Return the request with its pictures as the model takes them, decoded. Raises RequestError."""
        if self.pictures is not None:
            return self
        messages, pictures = with_pictures(self.messages, sees=llm.pictures is not None)
        for picture in pictures:
            picture.open(llm)
        body = {**self.body, "messages": messages}  # so that the text of a picture is let go of
        return replace(self, body=body, messages=messages, pictures=pictures)

    def fitted(self, llm: LLM) -> Self:
        """Return the request without the oldest turns that do not fit the model's context. Raises as `start`."""
        if self.pictures is None:
            return self.opened(llm).fitted(llm)
        with in_terms_of(self.body, self.settings.names):
            kept, dropped = fitting(
                llm,
                messages_from(self.messages),
                self.settings.options.get("max_new_tokens"),
                tools=self.tools,
                template_variables=self.template_variables,
            )
        return replace(self, messages=kept, dropped_messages=len(dropped)) if dropped else self

    def start(self, llm: LLM, sampling: UsualSampling = "greedy", on_picture: OnPicture | None = None) -> list[Stream]:
        """Return a stream for each choice, all submitted. Raises RequestError, or an EdgeError that is not about it."""
        if self.pictures is None:
            return self.opened(llm).start(llm, sampling, on_picture)
        settings = self.settings
        options: GenerationOptions = {"sampling": sampling, **settings.options}
        with in_terms_of(self.body, settings.names):
            try:
                return list(
                    llm.chat_samples(
                        self.messages,
                        settings.n,
                        tools=self.tools,
                        tool_choice=self.tool_choice,
                        template_variables=self.template_variables,
                        continue_final_message=self.continue_final_message,
                        memory=self.memory,
                        on_picture=on_picture,
                        **options,
                    )
                )
            except ContextLengthError as error:
                ids = llm.encode_chat(
                    self.messages,
                    tools=self.tools,
                    template_variables=self.template_variables,
                    continue_final_message=self.continue_final_message,
                )
                raise too_long(llm, len(ids), "messages", "messages") from error

    def answer(self, head: Head, answers: Sequence[Answer], llm: LLM) -> JsonBody:
        """Return the body that answers this. Raises RequestError if a deadline left nothing to send."""
        settings = self.settings
        wanted = settings.options.get("logprobs") is not None
        head = replace(head, dropped_messages=self.dropped_messages)
        return chat_completion(head, answers, llm.tokenizer, logprobs=wanted, token_ids=settings.token_ids)

    def events(self, head: Head, llm: LLM) -> AnswerEvents:
        """Return what makes the events of a streamed answer."""
        return ChatEvents(replace(head, dropped_messages=self.dropped_messages), self.settings, llm.tokenizer)

    def refusal(self, error: EdgeError) -> EdgeError:
        """Return an error that ended an answer in terms of the body, or as it is if the body is not to blame."""
        return refusal_of(error, self.body, self.settings.names)


def continues(fields: JsonObject) -> bool:
    """Whether the answer continues the last message. Raises RequestError if it would have to begin one, or neither."""
    continued = bool(fields.get("continue_final_message", False))
    begun = fields.get("add_generation_prompt", not continued)
    if begun != (not continued):
        raise RequestError(
            "add_generation_prompt begins a message and continue_final_message continues the last one; send one of the "
            "two as true",
            code="invalid_value" if begun else "unsupported_parameter",
            param="add_generation_prompt",
        )
    return continued


def _logprobs(fields: JsonObject) -> dict[str, object]:
    """The runtime counts alternatives only; here, a second field says whether there are log-probabilities at all."""
    top = fields.get("top_logprobs", 0)
    if fields.get("logprobs", False):
        return {"logprobs": top}
    if top:
        raise RequestError(
            f"top_logprobs is {top}, expected logprobs: true beside it", code="invalid_value", param="top_logprobs"
        )
    return {}
