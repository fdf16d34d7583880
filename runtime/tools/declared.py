"""Checks of the tools that a request declares.

In: a list of mappings in OpenAI's form, or GLM-4's own tools, which have only a type. Out: the tools as a tuple. Knows
nothing about templates, or how a model calls a tool. Errors are PromptErrors whose `param` is a path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from edge.runtime.errors import PromptError, in_words, not_expected, shown
from edge.runtime.unicode import check_text

GLM_TOOLS = ("python", "simple_browser", "cogview")  # GLM-4's "All Tools": described in its template, by type alone

JsonObject = Mapping[str, Any]  # its values are JSON at any depth, as `check_json` checks

_EXAMPLE = "{'type': 'function', 'function': {'name': ..., 'description': ..., 'parameters': {...}}}"
_DEEPEST = 64  # levels of a schema or an object


def checked_tools(values: object, path: str = "tools") -> tuple[JsonObject, ...]:
    """Return the tools unchanged. Raises PromptError."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise not_expected(path, values, f"a list of tools like {_EXAMPLE}")
    names: set[str] = set()
    for i, tool in enumerate(values):
        name = _check_tool(tool, f"{path}[{i}]")
        if name in names:
            raise PromptError(f"{path}[{i}] is a second tool named {shown(name)}; give each its own name", param=path)
        names.add(name)
    return tuple(values)


def check_json(value: object, path: str, depth: int = 0) -> None:
    """Raise PromptError for a value that JSON cannot hold, text that is not Unicode, and nesting that is too deep."""
    if depth > _DEEPEST:
        raise PromptError(f"{path[:80]} is nested more than {_DEEPEST} levels deep; flatten it", param=path[:80])
    if isinstance(value, str):
        check_text(value, path, param=path)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_text(key, f"a key of {path}", param=path)
            check_json(item, f"{path}.{in_words(key, 40)}", depth + 1)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_json(item, f"{path}[{i}]", depth + 1)
    elif isinstance(value, float) and not isfinite(value):
        raise not_expected(path, value, "a finite number, as JSON has")
    elif value is not None and not isinstance(value, bool | int | float):
        raise not_expected(path, value, "a value of JSON")


def _check_tool(tool: object, path: str) -> str:
    """Return a tool's name. Raises PromptError."""
    if not isinstance(tool, Mapping):
        raise not_expected(path, tool, f"a mapping like {_EXAMPLE}")
    check_json(tool, path)
    kind = tool.get("type")
    if kind in GLM_TOOLS:
        return str(kind)
    if kind != "function":
        raise not_expected(f"{path}.type", kind, f"'function', or one of GLM-4's own: {', '.join(GLM_TOOLS)}")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise not_expected(f"{path}.function", function, f"a mapping; a tool is {_EXAMPLE}")
    name = function.get("name")
    if not isinstance(name, str) or not name.strip() or "\n" in name:
        raise not_expected(f"{path}.function.name", name, "a name on one line")
    for key, kinds, expected in (("description", str, "text"), ("parameters", Mapping, "a JSON schema")):
        if not isinstance(function.get(key), kinds | None):
            raise not_expected(f"{path}.function.{key}", function[key], expected)
    return name
