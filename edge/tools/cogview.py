"""cogview, GLM-4's tool that paints: recognized, and answered with the reason why there is no picture.

In: a call. Out: a sentence for the model, which then can tell the user in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.tools.tool import Tool

NAME = "cogview"
ANSWER = (
    "cogview is not available here: this program runs offline and cannot make pictures. Tell the user so, and describe "
    "the picture in words if that helps."
)


def cogview_tool() -> Tool:
    """Return the tool. It answers every call with the same sentence."""
    function = {
        "name": NAME,
        "description": "Makes a picture of a description in English. Not available here.",
        "parameters": {
            "type": "object",
            "properties": {"prompt": {"type": "string", "description": "Description of the picture"}},
            "required": ["prompt"],
            "additionalProperties": False,
        },
    }
    return Tool(declaration={"type": "function", "function": function}, run=_answer, native={"type": NAME})


def _answer(arguments: Mapping[str, Any]) -> str:  # noqa: ARG001  # whatever they are
    return ANSWER
