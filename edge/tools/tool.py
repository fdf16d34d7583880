"""A tool: what a model is told of it, and what runs when it is called.

In: a declaration in OpenAI's form and a function of parsed arguments. Out: a frozen record that every kind of tool
shares, be it a Python function, an MCP server's or one of GLM-4's own. Knows nothing about models or the loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from edge.runtime.tools.declared import JsonObject, checked_tools


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Tool:
    """Something a model may call. Raises PromptError for a declaration of another form.

    Native tools of GLM-4 get the raw text of a call: `{"code": ...}` for python, `{"input": ...}` for simple_browser
    and cogview.
    """

    declaration: JsonObject  # OpenAI's form: {"type": "function", "function": {...}}
    # Parsed arguments -> text for the model. May raise: the message goes back to the model.
    run: Callable[[Mapping[str, Any]], str | Awaitable[str]]  # Any: values of JSON
    native: JsonObject | None = None  # {"type": "python"}: how a template that knows the tool by type alone declares it
    close: Callable[[], None] = _nothing  # ends what it started, such as a child process

    def __post_init__(self) -> None:
        checked_tools([self.declaration], "declaration")
        if self.native is not None:
            checked_tools([self.native], "native")

    @property
    def name(self) -> str:
        """What the model calls it by."""
        function = self.declaration.get("function")
        return str(function["name"] if function is not None else self.declaration["type"])

    def declared_to(self, native: Collection[str]) -> JsonObject:
        """Return what a model is told of it. native: types of tools that its template describes itself."""
        return self.native if self.native is not None and self.native["type"] in native else self.declaration
