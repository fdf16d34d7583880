"""The input of /v1/responses as messages of a chat.

In: a text or items, and instructions. Out: messages, with the places that their values came from. Messages are checked
later, as those of a chat; here only what a chat does not have. Knows nothing about other fields.

A message is a message. A call is part of the assistant's message before it, as it was when it was written; its output
is a message of a tool. Reasoning is left out: the models here read none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge.runtime.errors import in_words, shown
from edge.wire.answers import JsonBody
from edge.wire.errors import RequestError
from edge.wire.fields import check_type
from edge.wire.places import Places

_ROLES = ("user", "assistant", "system", "developer")
_WITHOUT_EFFECT = ("type", "id", "status", "phase", "caller", "namespace")
_KEYS = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output", "name"),
}


def messages_of(given: str | Sequence[Any], instructions: str | None, places: Places) -> list[JsonBody]:  # Any: JSON
    """Return the messages. Raises RequestError."""
    messages = list[JsonBody]()
    places.add("messages", "input")
    if instructions is not None:
        places.add("messages[0].content", "instructions")
        places.add("messages[0]", "instructions")
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        places.add(f"messages[{len(messages)}].content", "input")
        places.add(f"messages[{len(messages)}]", "input")
        messages.append({"role": "user", "content": given})
        return messages
    before = len(messages)
    for i, item in enumerate(given):
        _take(item, f"input[{i}]", messages, places)
    if len(messages) == before:
        raise RequestError(
            f"input is {shown(given)}, expected text, or at least one message", code="invalid_value", param="input"
        )
    return messages


def _take(item: object, path: str, messages: list[JsonBody], places: Places) -> None:
    check_type(path, item, ("object",))
    assert isinstance(item, dict)
    kind = item.get("type")
    if kind is None:
        kind = "message"
    check_type(f"{path}.type", kind, ("string",))
    if kind == "reasoning":
        return
    if kind not in _KEYS:
        raise _unsupported(kind, path)
    for key, value in item.items():
        if value is not None and key not in _KEYS[kind] and key not in _WITHOUT_EFFECT:
            raise RequestError(
                f"{path} has an unknown key {shown(key)}; a {kind} has {', '.join(_KEYS[kind])}",
                code="unknown_parameter",
                param=f"{path}.{in_words(key, 100)}",
            )
    if kind == "message":
        _take_message(item, path, messages, places)
    elif kind == "function_call":
        _take_call(item, path, messages, places)
    else:
        _take_output(item, path, messages, places)


def _take_message(item: JsonBody, path: str, messages: list[JsonBody], places: Places) -> None:
    role = item.get("role")
    if isinstance(role, str) and role not in _ROLES:
        raise RequestError(
            f"{path}.role is {shown(role)}, expected one of {', '.join(_ROLES)}",
            code="invalid_value",
            param=f"{path}.role",
        )
    places.add(f"messages[{len(messages)}]", path)
    messages.append({key: item[key] for key in ("role", "content") if key in item})


def _take_call(item: JsonBody, path: str, messages: list[JsonBody], places: Places) -> None:
    _check_id(item, path)
    if not messages or messages[-1].get("role") != "assistant":
        places.add(f"messages[{len(messages)}]", path)
        messages.append({"role": "assistant", "content": None})
    calls = messages[-1].setdefault("tool_calls", [])
    made = f"messages[{len(messages) - 1}].tool_calls[{len(calls)}]"
    places.add(made, path)
    places.add(f"{made}.id", f"{path}.call_id")
    places.add(f"{made}.function", path)
    function = {key: item[key] for key in ("name", "arguments") if key in item}
    calls.append({"id": item["call_id"], "type": "function", "function": function})


def _take_output(item: JsonBody, path: str, messages: list[JsonBody], places: Places) -> None:
    _check_id(item, path)
    made = f"messages[{len(messages)}]"
    places.add(made, path)
    places.add(f"{made}.tool_call_id", f"{path}.call_id")
    places.add(f"{made}.content", f"{path}.output")
    message = {"role": "tool", "tool_call_id": item["call_id"]}
    messages.append({**message, "content": item["output"]} if item.get("output") is not None else message)


def _check_id(item: JsonBody, path: str) -> None:
    path = f"{path}.call_id"
    if item.get("call_id") is None:
        raise RequestError(f"{path} is missing", code="missing_required_parameter", param=path)
    check_type(path, item["call_id"], ("string",))


def _unsupported(kind: str, path: str) -> RequestError:
    why = "refers to a stored item, and nothing is stored here; send the item itself"
    if kind != "item_reference":
        why = f"is of type {shown(kind)}; expected one of {', '.join(_KEYS)}, reasoning"
    return RequestError(f"{path} {why}", code="unsupported_content", param=path)
