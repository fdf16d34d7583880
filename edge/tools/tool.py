"""A tool as a model and a loop see it: what it is called with, and the function that runs.

Knows nothing about models, loops, or what a tool does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge.runtime.tools.declared import JsonObject

Run = Callable[[Mapping[str, Any]], str | Awaitable[str]]  # JSON arguments; text for the model


@dataclass(frozen=True)
class Tool:
    """Something a model may call."""

    declaration: JsonObject  # OpenAI's form: {"type": "function", "function": {...}}
    run: Run  # may raise: the message goes back to the model
    native: JsonObject | None = None  # {"type": "python"}: how a template that knows the tool by its type declares it
    close: Callable[[], None] = lambda: None  # ends what it started

    @property
    def name(self) -> str:
        return str(self.declaration["function"]["name"])
