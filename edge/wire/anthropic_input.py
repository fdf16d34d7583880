"""Messages of /v1/messages as messages of a chat.

In: messages of blocks, and a system text. Out: messages, with the places that their values came from. Messages are
checked later, as those of a chat; here only what a chat does not have. Knows nothing about other fields.

Results of tools, which Anthropic has in the user's message, are messages of their own. Thinking is left out: the models
here read none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge.runtime.errors import in_words, shown
from edge.wire.answers import JsonBody
from edge.wire.errors import RequestError
from edge.wire.fields import check_type
from edge.wire.pictures import AnthropicPicture
from edge.wire.places import Places

_ROLES = ("user", "assistant", "system")
_WITHOUT_EFFECT = ("type", "cache_control", "citations", "caller", "toolset_name", "is_error", "edge")
_KEYS = {
    "text": ("text",),
    "image": ("source",),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id", "content"),
}
_ROLE_OF = {"tool_use": "assistant", "tool_result": "user"}
_SKIPPED = ("thinking", "redacted_thinking")
_OTHER_MEDIA = ("document", "search_result", "container_upload")


def messages_of(given: Sequence[Any], system: Any, places: Places) -> list[JsonBody]:  # Any: JSON, not yet checked
    """Return the messages. Raises RequestError."""
    messages = list[JsonBody]()
    if system is not None:
        places.add("messages[0].content", "system")
        places.add("messages[0]", "system")
        messages.append({"role": "system", "content": _texts(system, "system")})
    if not given:
        raise RequestError("messages is empty, expected at least one", code="invalid_value", param="messages")
    for i, message in enumerate(given):
        _take(message, f"messages[{i}]", messages, places)
    if messages[-1].get("role") == "assistant":
        path = f"messages[{len(given) - 1}]"
        raise RequestError(
            f"{path} is the assistant's, and answers that continue a message are not supported; end with the user's",
            code="unsupported_content",
            param=path,
        )
    return messages


def _take(message: object, path: str, messages: list[JsonBody], places: Places) -> None:
    check_type(path, message, ("object",))
    assert isinstance(message, dict)
    for key, value in message.items():
        if value is not None and key not in ("role", "content"):
            raise _unknown_key(key, path, "a message has role, content")
    role = message.get("role")
    if isinstance(role, str) and role not in _ROLES:
        raise _not_expected(f"{path}.role", role, f"one of {', '.join(_ROLES)}")
    content = message.get("content")
    if not isinstance(content, list) or not isinstance(role, str):
        places.add(f"messages[{len(messages)}]", path)
        messages.append({key: message[key] for key in ("role", "content") if key in message})
        return
    before = len(messages)
    for j, block in enumerate(content):
        _take_block(block, f"{path}.content[{j}]", role, messages, before, places)
    if len(messages) == before:
        places.add(f"messages[{before}]", path)
        messages.append({"role": role, "content": ""})


def _take_block(
    block: object, path: str, role: str, messages: list[JsonBody], before: int, places: Places
) -> None:  # before: how many messages there were before this block's
    kind = _kind(block, path, _KEYS)
    assert isinstance(block, dict)
    if kind in _SKIPPED:
        return
    if role != _ROLE_OF.get(kind, role):
        raise RequestError(
            f"{path} is a {kind} in a message of role {shown(role)}; only {_ROLE_OF[kind]!r} has some",
            code="invalid_value",
            param=path,
        )
    last = messages[-1] if len(messages) > before else None
    if kind == "tool_result":
        _take_result(block, path, messages, places)
    elif kind == "tool_use":
        if last is None:
            places.add(f"messages[{len(messages)}]", path)
            messages.append({"role": role, "content": None})
        _take_call(block, path, messages, places)
    else:
        if last is None or last["role"] != role or "tool_calls" in last:
            places.add(f"messages[{len(messages)}]", path.rpartition(".")[0])
            messages.append({"role": role, "content": []})
        content = messages[-1]["content"]
        places.add(f"messages[{len(messages) - 1}].content[{len(content)}]", path)
        content.append(_part(block))


def _take_call(block: JsonBody, path: str, messages: list[JsonBody], places: Places) -> None:
    _check_present(block, "id", path)
    calls = messages[-1].setdefault("tool_calls", [])
    made = f"messages[{len(messages) - 1}].tool_calls[{len(calls)}]"
    places.add(made, path)
    places.add(f"{made}.function", path)
    places.add(f"{made}.function.arguments", f"{path}.input")
    _check_present(block, "input", path, "object")
    calls.append({
        "id": block["id"], "type": "function", "function": {"name": block.get("name"), "arguments": block["input"]},
    })  # fmt: skip


def _take_result(block: JsonBody, path: str, messages: list[JsonBody], places: Places) -> None:
    _check_present(block, "tool_use_id", path)
    made = f"messages[{len(messages)}]"
    places.add(made, path)
    places.add(f"{made}.tool_call_id", f"{path}.tool_use_id")
    content = block.get("content")
    content = "" if content is None else _texts(content, f"{path}.content")
    messages.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": content})


def _texts(content: object, path: str) -> object:
    """Return a content that may only be text as a chat has it."""
    if not isinstance(content, list):
        return content
    for j, block in enumerate(content):
        _kind(block, f"{path}[{j}]", ("text",))
    return [_part(block) for block in content]


def _part(block: JsonBody) -> object:
    return (
        AnthropicPicture(block.get("source"))
        if block["type"] == "image"
        else {"type": "text", "text": block.get("text")}
    )


def _kind(block: object, path: str, known: Sequence[str] | dict[str, tuple[str, ...]]) -> str:
    """Return the type of a block whose keys are known."""
    check_type(path, block, ("object",))
    assert isinstance(block, dict)
    _check_present(block, "type", path)
    kind = str(block["type"])
    if kind in _SKIPPED and known is _KEYS:
        return kind
    if kind in _OTHER_MEDIA or (kind == "image" and kind not in known):
        told = "text and pictures" if kind not in _KEYS else "text alone here"
        raise RequestError(
            f"{path} is of type {kind!r}, which is not supported; expected {told}",
            code="unsupported_content",
            param=path,
        )
    if kind not in known:
        raise _not_expected(f"{path}.type", kind, f"one of {', '.join(known)}")
    for key, value in block.items():
        if value is not None and key not in _KEYS[kind] and key not in _WITHOUT_EFFECT:
            raise _unknown_key(key, path, f"a {kind} has {', '.join(_KEYS[kind])}")
    return kind


def _check_present(block: JsonBody, key: str, path: str, kind: Any = "string") -> None:  # Any: a type of JSON
    path = f"{path}.{key}"
    if block.get(key) is None:
        raise RequestError(f"{path} is missing", code="missing_required_parameter", param=path)
    check_type(path, block[key], (kind,))


def _not_expected(path: str, value: object, expected: str) -> RequestError:
    return RequestError(f"{path} is {shown(value)}, expected {expected}", code="invalid_value", param=path)


def _unknown_key(key: str, path: str, known: str) -> RequestError:
    return RequestError(
        f"{path} has an unknown key {shown(key)}; {known}",
        code="unknown_parameter",
        param=f"{path}.{in_words(key, 100)}",
    )
