"""A body of Anthropic's /v1/messages, as the body of a chat.

In: a JSON object. Out: an `AnthropicRequest`, whose answers are those of a `ChatRequest`; or how many tokens its prompt
has. Everything is checked by the chat; errors name the field that the client sent. Knows nothing about how an answer is
sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from edge.runtime.chunk import Answer
from edge.runtime.errors import shown
from edge.runtime.llm import LLM
from edge.runtime.thinking import ThinkingForm
from edge.runtime.tools.declared import JsonObject
from edge.wire.answers import Head, JsonBody
from edge.wire.anthropic_answers import AnthropicEvents, message_body
from edge.wire.anthropic_fields import ANTHROPIC
from edge.wire.anthropic_input import messages_of
from edge.wire.body import in_terms_of
from edge.wire.chat_request import ChatRequest
from edge.wire.converted import ConvertedRequest
from edge.wire.errors import RequestError
from edge.wire.events import AnswerEvents
from edge.wire.fields import check_type, read_fields
from edge.wire.places import Places
from edge.wire.responses_fields import EXTENSIONS

_SAME = ("model", "stream", "max_tokens", "temperature", "top_p", "top_k", *EXTENSIONS)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_THINKING = ("disabled", "adaptive")  # adaptive: as much as the model thinks fit, which for most is none


@dataclass(frozen=True, slots=True)
class AnthropicRequest(ConvertedRequest):
    """Messages to answer, and how."""

    thinking: JsonObject | None = None  # as it was sent

    @classmethod
    def from_body(cls, body: JsonObject) -> Self:
        """Raises RequestError for everything that is wrong whatever the model."""
        fields = read_fields(body, ANTHROPIC)
        if "messages" not in fields:
            raise RequestError("messages is missing", code="missing_required_parameter", param="messages")
        places = Places()
        chat: JsonBody = {name: fields[name] for name in _SAME if name in fields}
        chat["messages"] = messages_of(fields["messages"], fields.get("system"), places)
        if "stop_sequences" in fields:
            places.add("stop", "stop_sequences")
            chat["stop"] = fields["stop_sequences"]
        chat["tools"] = [_chat_tool(tool, i, places) for i, tool in enumerate(fields.get("tools", []))]
        if "tool_choice" in fields:
            chat["tool_choice"] = _tool_choice(fields["tool_choice"])
        chat["response_format"] = _response_format(fields.get("output_config", {}), places)
        with places.translating():
            return cls(ChatRequest.from_body(chat), places, fields.get("thinking"))

    def opened(self, llm: LLM) -> Self:
        """Return the request with its pictures decoded, for the errors that this finds. Raises RequestError."""
        _check_thinking(self.thinking, thinks=ThinkingForm.of(llm.tokenizer.token_id).looks)
        return ConvertedRequest.opened(self, llm)

    def answer(self, head: Head, answers: Sequence[Answer], llm: LLM) -> JsonBody:  # noqa: ARG002
        """Return the body that answers this. Raises RequestError if a deadline left nothing to send."""
        (answer,) = answers
        return message_body(self.told(head), answer)

    def events(self, head: Head, llm: LLM) -> AnswerEvents:  # noqa: ARG002  # as others need it
        """Return what makes the events of a streamed answer."""
        return AnthropicEvents(self.told(head))

    def count(self, llm: LLM) -> int:
        """Return how many tokens the prompt has. Raises RequestError."""
        chat = self.opened(llm).chat
        with self.places.translating(), in_terms_of(chat.body, chat.settings.names):
            ids = llm.encode_chat(chat.messages, tools=chat.tools, template_variables=chat.template_variables)
        return len(ids)


def count_tokens(body: JsonObject, llm: LLM) -> JsonBody:
    """Answer a body of /v1/messages/count_tokens. Raises RequestError."""
    return {"input_tokens": AnthropicRequest.from_body(body).count(llm)}


def _check_thinking(thinking: JsonObject | None, *, thinks: bool) -> None:
    """A model that thinks does so as much as it likes, whatever is asked for."""
    if thinking is not None and thinking.get("type") not in (*_THINKING, *["enabled"] * thinks):
        why = "is of no type that is known" if thinks else "asks a model to think that does not"
        raise RequestError(
            f"thinking is {shown(thinking)}, which {why}; leave it out, or send type 'disabled'",
            code="unsupported_parameter",
            param="thinking",
        )


def _chat_tool(tool: object, i: int, places: Places) -> object:
    """Return a tool in the form that chats have; the runtime refuses what is not one."""
    path = f"tools[{i}]"
    if not isinstance(tool, Mapping):
        return tool
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise RequestError(
            f"{path}.type is {shown(kind)}; only tools with an input_schema of their own are supported",
            code="unsupported_parameter",
            param=f"{path}.type",
        )
    if tool.get("input_schema") is None:
        raise RequestError(
            f"{path}.input_schema is missing", code="missing_required_parameter", param=f"{path}.input_schema"
        )
    places.add(f"{path}.function", path)
    places.add(f"{path}.function.parameters", f"{path}.input_schema")
    named = {"name": "name", "description": "description", "parameters": "input_schema", "strict": "strict"}
    return {
        "type": "function",
        "function": {key: tool[name] for key, name in named.items() if tool.get(name) is not None},
    }


def _tool_choice(choice: JsonObject) -> str | JsonBody:
    kind, name = choice.get("type"), choice.get("name")
    if isinstance(kind, str) and kind in _CHOICES:
        return _CHOICES[kind]
    if kind != "tool":
        raise RequestError(
            f"tool_choice.type is {shown(kind)}, expected one of {', '.join(_CHOICES)}, tool",
            code="missing_required_parameter" if kind is None else "invalid_value",
            param="tool_choice.type",
        )
    if name is None:
        raise RequestError("tool_choice.name is missing", code="missing_required_parameter", param="tool_choice.name")
    check_type("tool_choice.name", name, ("string",))
    return {"type": "function", "function": {"name": name}}


def _response_format(config: JsonObject, places: Places) -> JsonBody | None:
    for key, value in config.items():
        if key not in ("format", "effort") and value is not None:
            raise RequestError(
                f"output_config has an unknown key {shown(key)}; expected format",
                code="unknown_parameter",
                param="output_config",
            )
    given = config.get("format")
    if given is None:
        return None
    check_type("output_config.format", given, ("object",))
    if given.get("type") != "json_schema":
        raise RequestError(
            f"output_config.format.type is {shown(given.get('type'))}, expected 'json_schema'",
            code="missing_required_parameter" if given.get("type") is None else "invalid_value",
            param="output_config.format.type",
        )
    places.add("response_format", "output_config.format")
    places.add("response_format.json_schema", "output_config.format")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": given.get("schema")}}
