"""The body of a request: from bytes to an object, and from the runtime's words about a value to the protocol's.

In: bytes; errors of the runtime, whose `param` is a setting or a path. Out: an object; `RequestError`s that name a
field of the body. Knows nothing about single endpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from edge.runtime.errors import (
    EdgeError,
    MissingPackageError,
    PromptError,
    SettingsError,
    shown,
)
from edge.runtime.json_reader import parse_json
from edge.runtime.tools.declared import JsonObject
from edge.wire.errors import Code, RequestError
from edge.wire.fields import JsonType, is_of

_SEGMENT = re.compile(r"\[(\d+)\]|\.?([^.\[]+)")
# Types of values inside a body, by the last name of their path.
_INNER: dict[str, tuple[JsonType, ...]] = {
    "role": ("string",),
    "content": ("string", "array"),
    "text": ("string",),
    "refusal": ("string",),
    "type": ("string",),
    "name": ("string",),
    "description": ("string",),
    "metadata": ("string",),
    "tool_call_id": ("string",),
    "id": ("string",),
    "arguments": ("string", "object"),
    "function": ("object",),
    "function_call": ("object",),
    "parameters": ("object",),
    "tool_calls": ("array",),
    "tools": ("array",),
}
_IN_LISTS: dict[str, tuple[JsonType, ...]] = {
    "messages": ("object",),
    "content": ("object",),
    "tools": ("object",),
    "tool_calls": ("object",),
    "prompt": ("string", "integer", "array"),
}
_ABSENT = object()


class InvalidJsonError(RequestError):
    """A body that is not a JSON object."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_json")


def read_body(raw: bytes) -> JsonObject:
    """Return the object that a body is. Raises InvalidJsonError."""
    body = parse_json(raw, "the body", InvalidJsonError, "send one JSON object in UTF-8")
    if not isinstance(body, dict):
        raise InvalidJsonError(f"the body is {shown(body)}, expected a JSON object")
    return body


@contextmanager
def in_terms_of(body: JsonObject, names: Mapping[str, str]) -> Iterator[None]:
    """Turn the runtime's errors about a request into RequestErrors.

    names: setting -> the field that it came from, where the two differ; "constraint" has one if the request has one.
    """
    try:
        yield
    except EdgeError as error:
        refusal = refusal_of(error, body, names)
        if refusal is error:
            raise
        raise refusal from error


def refusal_of(error: EdgeError, body: JsonObject, names: Mapping[str, str]) -> EdgeError:
    """Return an error of the runtime in terms of the body; as it is if the body is not to blame."""
    constraint = names.get("constraint")
    if isinstance(error, MissingPackageError):
        return RequestError(str(error), code="unsupported_parameter", param=constraint)
    if isinstance(error, RequestError) or not isinstance(error, PromptError | SettingsError):
        return error
    about_constraint = error.param == "constraint" or (error.param is None and isinstance(error, SettingsError))
    if constraint is not None and about_constraint:
        return RequestError(_renamed(str(error), names), code=_code_of_form(error), param=constraint)
    param = _renamed(error.param or "", names) or None
    message = _renamed(str(error), names)
    if isinstance(error, SettingsError) and param in (None, "tool_choice") and body.get("tools"):
        known = param is not None and not _is_missing(error)
        code = code_at(body, param) if known else _code_of_form(error)
        return RequestError(message, code=code, param=param or "tools")
    return RequestError(message, code=code_at(body, param), param=param)


def code_at(body: JsonObject, param: str | None) -> Code:
    """Say in what way the value at a path of a body is wrong, after something has refused it."""
    if param is None:
        return "invalid_value"
    segments = _SEGMENT.findall(param)
    value: object = body
    for index, name in segments:
        if index and isinstance(value, list) and int(index) < len(value):
            value = value[int(index)]
        elif name and isinstance(value, Mapping):
            value = value.get(name, _ABSENT)
        else:
            return "invalid_value"
    if value is _ABSENT or value is None:
        return "missing_required_parameter"
    if param == "messages" and isinstance(value, list) and value:
        return "invalid_messages"
    index, name = segments[-1]
    if name == "parameters" and len(segments) > 1 and isinstance(value, Mapping):
        return "invalid_schema"
    types = _INNER.get(name) if name else _IN_LISTS.get(segments[-2][1] if len(segments) > 1 else "")
    return "invalid_value" if types is None or is_of(value, types) else "invalid_type"


def _code_of_form(error: EdgeError) -> Code:
    """Say why the form of an answer cannot be held."""
    return "unsupported_parameter" if _is_missing(error) else "invalid_schema"


def _is_missing(error: EdgeError) -> bool:
    return "not installed" in str(error)


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """Return text with fields in the place of the settings that they set."""
    for setting, field in names.items():
        if setting != "constraint":
            text = re.sub(rf"(?<![\w.]){re.escape(setting)}(?!\w)", lambda _: field, text)  # noqa: B023  # called at once
    return text
