"""Messages of a conversation as types, made from the mappings that clients send.

In: `Message` objects, OpenAI's mappings, or GLM-4's own (`observation`, `metadata`, `tools` in a system message). Out:
a tuple of checked `Message`s. Knows nothing about templates: `conventions.py` does. All errors are PromptErrors whose
`param` is the path of the value, like "messages[1].content".

Some keys of replayed answers are accepted without effect: `annotations`, `reasoning_content`, and any that are null,
like `audio: null`. A refusal counts as the assistant's text if there is no other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edge.runtime.errors import PromptError, in_words, not_expected, shown
from edge.runtime.parts import ImagePart, Part, TextPart, part_from
from edge.runtime.tools.declared import JsonObject, checked_tools
from edge.runtime.unicode import check_text

__all__ = ["ImagePart", "Message", "MessageLike", "Part", "Role", "TextPart", "ToolCall", "messages_from", "result_of"]

Role = Literal["system", "developer", "user", "assistant", "tool", "function", "observation"]

_ROLES: tuple[Role, ...] = get_args(Role)
_RESULTS = ("tool", "function")  # roles that answer a call
_WITHOUT_EFFECT = ("annotations", "reasoning_content", "reasoning", "parsed", "id")
_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name", "metadata", "tools", "function_call", "refusal")
_LISTED = 5  # known values that an error lists
_EXAMPLE = "{'role': 'user', 'content': 'Hello'}"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the assistant calls."""

    name: str
    arguments: str  # JSON as the model wrote it, which may be invalid
    id: str = ""

    def parsed(self) -> dict[str, Any] | None:  # Any: JSON
        """Return the arguments as an object; None if they are not one, or would not survive being written again.

        No arguments at all are an empty object: GLM-4's template would omit an empty text, and the call with it.
        """
        if not self.arguments.strip():
            return {}
        try:
            parsed = json.loads(self.arguments, object_pairs_hook=_unique, parse_constant=_refuse)
            json.dumps(parsed, allow_nan=False)  # 1e999 is infinite
        except (ValueError, RecursionError):
            return None
        return parsed if isinstance(parsed, dict) else None

    def to_dict(self) -> JsonObject:
        """Return it in OpenAI's form."""
        call = {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        return {"id": self.id, **call} if self.id else call


@dataclass(frozen=True, slots=True)
class Message:
    """One message, not checked: `messages_from` checks it together with those before it."""

    role: Role
    content: str | tuple[Part, ...] = ""
    tool_calls: tuple[ToolCall, ...] = ()  # of an assistant
    tool_call_id: str | None = None  # the call that a tool's message answers
    name: str | None = None
    metadata: str = ""  # GLM-4's own: text after the role, such as the name of a called function
    tools: tuple[JsonObject, ...] = ()  # GLM-4's own, in a system message

    @property
    def text(self) -> str:
        """The whole content as one text, without pictures."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def pictures(self) -> tuple[ImagePart, ...]:
        """The pictures in the content."""
        return () if isinstance(self.content, str) else tuple(p for p in self.content if isinstance(p, ImagePart))

    def to_dict(self) -> JsonObject:
        """Return it in OpenAI's form, without empty fields; GLM-4's own fields keep their names."""
        content = [_dict_of(part) for part in self.content] if isinstance(self.content, tuple) else self.content
        calls = [_dict_of(call) for call in self.tool_calls] if isinstance(self.tool_calls, tuple) else self.tool_calls
        rest = {"tool_calls": calls, "tool_call_id": self.tool_call_id, "name": self.name, "metadata": self.metadata}
        rest["tools"] = list(self.tools) if isinstance(self.tools, tuple) else self.tools
        return {"role": self.role, "content": content, **{key: value for key, value in rest.items() if value}}


MessageLike = Message | JsonObject


def result_of(call: ToolCall, text: str) -> Message:
    """Return what a call of a tool gave, as the message that answers it."""
    return Message("tool", text, tool_call_id=call.id or None, name=None if call.id else call.name)


def messages_from(values: Sequence[MessageLike]) -> tuple[Message, ...]:
    """Return the messages of a conversation, all checked. Raises PromptError."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise PromptError(f"messages is {shown(values)}, expected a list like [{_EXAMPLE}]", param="messages")
    if not values:
        raise PromptError(f"messages is empty, expected at least one like {_EXAMPLE}", param="messages")
    messages: list[Message] = []
    calls: list[ToolCall] = []
    for i, value in enumerate(values):
        message = _message(value, f"messages[{i}]")
        if message.role in _RESULTS:
            _check_answers(message, calls, f"messages[{i}]")
        messages.append(message)
        calls += message.tool_calls
    return tuple(messages)


def _message(value: object, path: str) -> Message:
    given = value.to_dict() if isinstance(value, Message) else value
    if not isinstance(given, Mapping):
        raise not_expected(path, given, f"a Message or a mapping like {_EXAMPLE}")
    role = _role(given, path)
    for key, item in given.items():
        if key not in _KEYS and key not in _WITHOUT_EFFECT and item is not None:
            raise not_expected(f"{path}.{in_words(key)}", item, f"none of this key; known are {', '.join(_KEYS)}")
    calls = _tool_calls(given, role, path)
    tool_call_id = _text(given, "tool_call_id", path)
    if tool_call_id is not None and role != "tool":
        raise not_expected(
            f"{path}.tool_call_id", tool_call_id, f"none in a message of role {role!r}; only 'tool' has one"
        )
    tools = given.get("tools") or ()
    if tools and role not in ("system", "developer"):
        raise not_expected(
            f"{path}.tools", tools, f"none in a message of role {role!r}; give tools beside the messages"
        )
    return Message(
        role=role,
        content=_content(given, role, path, optional=bool(calls or tools)),
        tool_calls=calls,
        tool_call_id=tool_call_id,
        name=_text(given, "name", path),
        metadata=_text(given, "metadata", path) or "",
        tools=checked_tools(tools, f"{path}.tools") if tools else (),
    )


def _role(given: JsonObject, path: str) -> Role:
    if "role" not in given:
        raise PromptError(f"{path}.role is missing; expected {_EXAMPLE}, given {shown(given)}", param=f"{path}.role")
    role = given["role"]
    for known in _ROLES:
        if role == known:
            return known
    raise not_expected(f"{path}.role", role, f"one of {', '.join(_ROLES)}")


def _content(given: JsonObject, role: Role, path: str, *, optional: bool) -> str | tuple[Part, ...]:
    """Return the content; null is an empty text."""
    content = given.get("content")
    refusal = _text(given, "refusal", path)
    path = f"{path}.content"
    if content is None:
        if "content" not in given and refusal is None and not optional:
            raise PromptError(f"{path} is missing; expected text, a list of parts, or null", param=path)
        return refusal or ""
    if isinstance(content, str):
        return check_text(content, path, param=path)
    if isinstance(content, bytes | Mapping) or not isinstance(content, Sequence):
        raise not_expected(path, content, "text, a list of parts, or null")
    return tuple(part_from(part, f"{path}[{i}]", role) for i, part in enumerate(content))


def _tool_calls(given: JsonObject, role: Role, path: str) -> tuple[ToolCall, ...]:
    """Return the calls, or the single one of OpenAI's older `function_call`."""
    calls, old = given.get("tool_calls"), given.get("function_call")
    key = "tool_calls" if old is None else "function_call"
    if not calls and old is None and (calls is None or isinstance(calls, list | tuple)):
        return ()
    if role != "assistant":
        raise not_expected(
            f"{path}.{key}", given[key], f"none in a message of role {role!r}; only 'assistant' has some"
        )
    if old is not None:
        if calls:
            raise not_expected(f"{path}.function_call", old, "either tool_calls or function_call, not both")
        return (_function(old, f"{path}.function_call", ""),)
    if not isinstance(calls, list | tuple):
        raise not_expected(f"{path}.tool_calls", calls, "a list of calls")
    return tuple(_tool_call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(calls))


def _tool_call(given: object, path: str) -> ToolCall:
    if isinstance(given, ToolCall):
        given = given.to_dict()
    if not isinstance(given, Mapping):
        raise not_expected(path, given, "a call like {'id': ..., 'type': 'function', 'function': {...}}")
    if given.get("type") not in ("function", None):
        raise not_expected(f"{path}.type", given["type"], "'function'")
    return _function(given.get("function"), f"{path}.function", _text(given, "id", path) or "")


def _function(given: object, path: str, call_id: str) -> ToolCall:
    if not isinstance(given, Mapping):
        raise not_expected(path, given, "a function like {'name': 'search', 'arguments': '{\"query\": \"tea\"}'}")
    name = _text(given, "name", path)
    if not name:
        raise not_expected(f"{path}.name", name, "the name of a function")
    arguments = given.get("arguments")
    path = f"{path}.arguments"
    if isinstance(arguments, Mapping):  # the form that transformers uses
        try:
            arguments = json.dumps(dict(arguments), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise PromptError(
                f"{path} cannot be written as JSON ({in_words(error)}); expected an object", param=path
            ) from error
    if arguments is None:
        arguments = ""
    if not isinstance(arguments, str):
        raise not_expected(path, arguments, "JSON text, or an object")
    return ToolCall(name, check_text(arguments, path, param=path), call_id)


def _check_answers(message: Message, calls: Sequence[ToolCall], path: str) -> None:
    """Check that a result belongs to an earlier call: by id, or by name for `function`, or to any without an id."""
    if message.role == "function":
        names = [call.name for call in calls]
        if message.name not in names:
            raise not_expected(f"{path}.name", message.name, f"a function called before it: {_listed(names)}")
    elif message.tool_call_id is not None:
        ids = [call.id for call in calls if call.id]
        if message.tool_call_id not in ids:
            raise not_expected(
                f"{path}.tool_call_id", message.tool_call_id, f"the id of a call before it: {_listed(ids)}"
            )
    elif not calls:
        raise PromptError(
            f"{path}.role is 'tool', but no assistant message before it calls a tool; expected tool_calls there",
            param=f"{path}.role",
        )


def _text(given: JsonObject, key: str, path: str) -> str | None:
    value = given.get(key)
    return None if value is None else check_text(value, f"{path}.{key}", param=f"{path}.{key}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _dict_of(value: object) -> object:
    return value.to_dict() if isinstance(value, TextPart | ImagePart | ToolCall) else value


def _listed(known: Sequence[str]) -> str:
    return ", ".join(map(shown, known[-_LISTED:])) or "there is none"
