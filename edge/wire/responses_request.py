"""A body of /v1/responses, as the body of a chat.

In: a JSON object. Out: a `ResponsesRequest`, whose answers are those of a `ChatRequest`. Everything is checked there;
errors name the field that the client sent. Nothing is stored: each request holds the whole conversation. Knows nothing
about how an answer is sent.

Tools that are not functions are left out, since agents always send some: a model cannot call what it is not told of,
and the answer's `tools` lists what it was told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from edge.runtime.chunk import Answer
from edge.runtime.errors import shown
from edge.runtime.llm import LLM
from edge.runtime.tools.declared import GLM_TOOLS, JsonObject
from edge.wire.answers import Head, JsonBody
from edge.wire.chat_request import ChatRequest
from edge.wire.converted import ConvertedRequest
from edge.wire.errors import RequestError
from edge.wire.events import AnswerEvents
from edge.wire.fields import check_type, read_fields
from edge.wire.places import Places
from edge.wire.responses_answers import response_of
from edge.wire.responses_events import ResponsesEvents
from edge.wire.responses_fields import EXTENSIONS, RESPONSES
from edge.wire.responses_input import messages_of

_SAME = ("model", "stream", "temperature", "top_p", "top_k", "tool_choice", *EXTENSIONS)
_FUNCTION = ("name", "description", "parameters", "strict")
_LOGPROBS = "message.output_text.logprobs"


@dataclass(frozen=True, slots=True)
class ResponsesRequest(ConvertedRequest):
    """Input to respond to, and how."""

    body: JsonObject
    tools: Sequence[JsonObject]  # that the model is told of, as they came

    @classmethod
    def from_body(cls, body: JsonObject) -> Self:
        """Raises RequestError for everything that is wrong whatever the model."""
        fields = read_fields(body, RESPONSES)
        if "input" not in fields:
            raise RequestError("input is missing", code="missing_required_parameter", param="input")
        _check_include(fields.get("include", []))
        places = Places()
        chat: JsonBody = {name: fields[name] for name in _SAME if name in fields}
        chat["messages"] = messages_of(fields["input"], fields.get("instructions"), places)
        if "max_output_tokens" in fields:
            places.add("max_completion_tokens", "max_output_tokens")
            chat["max_completion_tokens"] = fields["max_output_tokens"]
        tools = _told(fields.get("tools", []), places)
        chat["tools"] = [_chat_tool(tool) for tool in tools]
        chat["response_format"] = _response_format(fields.get("text", {}), places)
        with places.translating():
            kept = {name: value for name, value in body.items() if name != "input"}  # it may hold pictures
            return cls(ChatRequest.from_body(chat), places, kept, tools)

    def answer(self, head: Head, answers: Sequence[Answer], llm: LLM) -> JsonBody:
        """Return the body that answers this. Raises RequestError if a deadline left nothing to send."""
        (answer,) = answers
        return response_of(self.told(head), self._asked, answer, llm.tokenizer)

    def events(self, head: Head, llm: LLM) -> AnswerEvents:
        """Return what makes the events of a streamed answer."""
        return ResponsesEvents(self.told(head), self._asked, llm.tokenizer)

    @property
    def _asked(self) -> JsonBody:
        return {**self.body, "tools": list(self.tools)}


def _check_include(wanted: Sequence[object]) -> None:
    """What else can be included does not exist here; log-probabilities do, but not in this protocol."""
    for i, name in enumerate(wanted):
        check_type(f"include[{i}]", name, ("string",))
        if name == _LOGPROBS:
            raise RequestError(
                f"include[{i}] is {shown(name)}, which is not supported; /v1/chat/completions has logprobs",
                code="unsupported_parameter",
                param=f"include[{i}]",
            )


def _told(tools: Sequence[Any], places: Places) -> list[Any]:  # Any: JSON, not yet checked
    """Return the tools that the model is told of, and note their places in the body of the chat."""
    told = list[Any]()
    for i, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind != "function" and kind not in GLM_TOOLS:
            continue
        places.add(f"tools[{len(told)}]", f"tools[{i}]")
        places.add(f"tools[{len(told)}].function", f"tools[{i}]")
        told.append(tool)
    return told


def _chat_tool(tool: object) -> object:
    """Return a tool in the form that chats have; the runtime refuses what is not one."""
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        return tool
    return {"type": "function", "function": {key: tool[key] for key in _FUNCTION if tool.get(key) is not None}}


def _response_format(text: JsonObject, places: Places) -> JsonBody | None:
    for key, value in text.items():
        if key not in ("format", "verbosity") and value is not None:
            raise RequestError(
                f"text has an unknown key {shown(key)}; expected format", code="unknown_parameter", param="text"
            )
    given = text.get("format")
    if given is None:
        return None
    check_type("text.format", given, ("object",))
    places.add("response_format", "text.format")
    places.add("response_format.json_schema", "text.format")
    if given.get("type") != "json_schema":
        return dict(given)
    return {"type": "json_schema", "json_schema": {key: value for key, value in given.items() if key != "type"}}
