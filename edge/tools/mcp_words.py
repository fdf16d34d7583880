"""What a model is told of an MCP server's tools: their names, their declarations, and what a call brought.

In: the protocol's records. Out: names in the form that models are trained on, declarations in OpenAI's form, text.
Knows nothing about processes. Imports the package's types for checkers alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from edge.runtime.tools.declared import GLM_TOOLS, JsonObject

if TYPE_CHECKING:
    from mcp.types import CallToolResult, ContentBlock
    from mcp.types import Tool as ServerTool

LONGEST_NAME = 64  # characters of a name
_SERVER_PART = 20  # characters of it that a server's name keeps beside a long name of a tool
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")


def tool_name(server: str, tool: str, taken: Collection[str]) -> str:
    """Return `server_tool` as a name of 1 to 64 letters, digits, _ and -, which is neither taken nor GLM-4's own."""
    server, tool = (_NOT_IN_NAMES.sub("_", part) for part in (server, tool))
    server = server[: max(_SERVER_PART, LONGEST_NAME - 1 - len(tool))]
    whole = f"{server}_{tool}"
    name, number = whole[:LONGEST_NAME], 1
    while name in taken or name in GLM_TOOLS:
        number += 1
        name = f"{whole[: LONGEST_NAME - 1 - len(str(number))]}_{number}"
    return name


def declaration(name: str, tool: ServerTool) -> JsonObject:
    """Return the declaration of a server's tool. The package has checked that its schema is an object's."""
    schema = {"properties": {}, **tool.input_schema}
    function = {"name": name, "description": tool.description or tool.title or "", "parameters": schema}
    return {"type": "function", "function": function}


def result_text(result: CallToolResult) -> str:
    """Return what a call brought as text: a part a line, parts that are not text in words."""
    if result.content:
        return "\n".join(map(_part, result.content))
    if result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return ""


def _part(part: ContentBlock) -> str:
    if part.type == "text":
        return part.text
    if part.type == "image":
        return f"[an image, {part.mime_type}]"
    if part.type == "audio":
        return f"[a sound, {part.mime_type}]"
    if part.type == "resource_link":
        return f"[a link, {part.title or part.name}: {part.uri}]"
    if "text" in part.resource.model_fields_set:
        return str(getattr(part.resource, "text", ""))
    return f"[a file, {part.resource.mime_type or 'of unknown type'}: {part.resource.uri}]"
