"""Which tools an answer may call: the request's `tool_choice`, checked against its tools.

In: a value as clients send it, and the declared tools. Out: a `ToolChoice`. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge.runtime.errors import SettingsError, shown
from edge.runtime.tools.declared import GLM_TOOLS, JsonObject

ToolChoiceLike = str | Mapping[str, Any]  # Any: JSON

_WORDS = ("auto", "none", "required")
_EXPECTED = "expected auto, none, required, or the name of a declared tool"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """auto: text or a call. none: text. required: a call of any tool, or of the one with this name."""

    kind: Literal["auto", "none", "required"] = "auto"
    name: str | None = None

    @property
    def is_forced(self) -> bool:
        """Whether the answer has to be a call."""
        return self.kind == "required"


def tool_name(tool: JsonObject) -> str:
    """Return the name by which a checked tool is called."""
    return str(tool["type"] if tool["type"] in GLM_TOOLS else tool["function"]["name"])


def tool_choice_of(value: object, tools: Sequence[JsonObject]) -> ToolChoice:
    """Return the choice that a text or OpenAI's mapping asks for. Raises SettingsError."""
    name = value
    if isinstance(value, Mapping):
        function = value.get("function", value)  # the Responses API has the name beside the type
        name = function.get("name") if value.get("type") == "function" and isinstance(function, Mapping) else None
        if not isinstance(name, str):
            raise _refused(f"tool_choice is {shown(value)}, {_EXPECTED}")
    elif value is None or value == "auto":
        return ToolChoice()
    elif value == "none":
        return ToolChoice("none")
    elif value == "required":
        if not tools:
            raise _refused("tool_choice is 'required', but no tools are given; give tools, or leave it out")
        return ToolChoice("required")
    if not isinstance(name, str):
        raise _refused(f"tool_choice is {shown(value)}, {_EXPECTED}")
    names = [tool_name(tool) for tool in tools]
    if name not in names:
        known = ", ".join(names[:5]) or "there are none"
        raise _refused(f"tool_choice names {shown(name)}, which is not a declared tool ({known}); {_EXPECTED}")
    return ToolChoice("required", name)


def _refused(message: str) -> SettingsError:
    return SettingsError(message, param="tool_choice")
