"""The browser as something that a model may call: GLM-4's `simple_browser`, and one function for other models.

In: a folder. Out: a `Tool`. Knows nothing about loops or templates.
"""

from __future__ import annotations

from os import PathLike

from edge.runtime.extras import check_installed
from edge.tools.browser.session import Browser
from edge.tools.tool import Tool

NAME = "simple_browser"
_DESCRIPTION = (
    "Searches and reads documents in a local folder; it has no internet. First search with a query; then open results "
    "by their ids; or open a document by its name. Cite what you use as 【id†text】, with the id of the opened page."
)


def browser_tool(folder: str | PathLike[str] | Browser) -> Tool:
    """Return the tool over a folder, or over a Browser, which can then tell what citations mean.

    Documents are read with the first call, and again where they have changed. Raises SettingsError, and
    MissingPackageError where a search would end with it.
    """
    check_installed("bm25s", needed="tools")
    browser = folder if isinstance(folder, Browser) else Browser(folder)
    return Tool(
        declaration={
            "type": "function",
            "function": {"name": NAME, "description": _DESCRIPTION, "parameters": _parameters()},
        },
        run=browser.run,
        native={"type": NAME},
    )


def _parameters() -> dict[str, object]:
    """One closed object for each action: a grammar made of it leaves no combination that would be refused."""
    text = {"type": "string", "minLength": 1}
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 10}
    described = {
        "query": text | {"description": "Words to search for"},
        "ids": ids | {"description": "Numbers of results of the last search, to open them"},
        "url": text | {"description": "Name of a document, to open it"},
    }
    return {
        "type": "object",
        "anyOf": [
            {"type": "object", "properties": {key: schema}, "required": [key], "additionalProperties": False}
            for key, schema in described.items()
        ],
    }
