"""Tool calls for models whose template knows no tools: everything is told in ordinary messages.

In: tools, calls and results. Out: text for messages of the roles that every template has. A model that was never
trained for tools follows such a text more or less well; a constraint (`grammar`) holds it to the form.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from edge.runtime.messages import ToolCall
from edge.runtime.tools.declared import GLM_TOOLS, JsonObject
from edge.runtime.tools.format import ToolFormat
from edge.runtime.tools.glm4 import arguments_text

GENERIC = ToolFormat("generic")

_BEFORE = "# Tools\n\nYou can call these functions:"
_AFTER = (
    "To call a function, answer with its name, a newline, and a JSON object with the arguments, and nothing else. For "
    "example:\n\n{name}\n{arguments}\n\nYou then get the result. Otherwise, answer in plain text."
)


def system_text(tools: Iterable[JsonObject], own: str = "") -> str:
    """Return a system message that describes the tools after the caller's own text."""
    functions = [tool["function"] for tool in tools if tool["type"] not in GLM_TOOLS]
    described = [
        f"## {function['name']}\n\n{json.dumps(function, indent=4, ensure_ascii=False)}" for function in functions
    ]
    properties = (functions[0].get("parameters") or {}).get("properties")
    named = list(properties)[:2] if isinstance(properties, Mapping) else []
    example = json.dumps({str(name): "..." for name in named}, ensure_ascii=False)
    after = _AFTER.format(name=functions[0]["name"], arguments=example)
    return "\n\n".join([*([own] if own else []), _BEFORE, *described, after])


def call_text(call: ToolCall) -> str:
    """Return what the assistant wrote to call a tool."""
    return f"{call.name}\n{arguments_text(call)}"


def result_text(name: str | None, text: str) -> str:
    """Return what the user's message says of a result."""
    return f"Result of {name}:\n{text}" if name else f"Result:\n{text}"
