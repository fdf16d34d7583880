"""The formats of tool calls, and which one a chat template is made for.

In: what `conventions` found in a template. Out: a `ToolFormat`. A format is added as a file beside this one, and here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from edge.runtime.tools.declared import GLM_TOOLS
from edge.runtime.tools.format import ToolFormat
from edge.runtime.tools.generic import GENERIC
from edge.runtime.tools.glm4 import GLM4
from edge.runtime.tools.glm4_0414 import GLM4_0414

UNKNOWN = ToolFormat("none", calls=False)  # the template has a form of its own, in which calls stay text

# How a template reads calls and tools -> the format of its model. Where it has no place for tools, ours is told.
FORMATS = {
    ("metadata", "message"): GLM4,
    ("metadata", "variable"): GLM4_0414,
    ("metadata", "none"): GENERIC,
    ("tool_calls", "none"): GENERIC,
    ("none", "none"): GENERIC,
}


def format_of(calls: str, tools: str, words: Collection[str]) -> ToolFormat:
    """Return the format for a template that reads calls and tools in these forms, and mentions these words."""
    found = FORMATS.get((calls, tools), UNKNOWN)
    native = frozenset(tool for tool in GLM_TOOLS if tool in words) if tools == "message" else frozenset[str]()
    return replace(found, native=native)
