"""One call of a tool: whatever goes wrong is told to the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from edge.runtime.errors import SettingsError
from edge.runtime.messages import ToolCall
from edge.tools.calling import MAX_ERROR, run_call, run_call_async
from edge.tools.tool import Tool
from tests.edge.tools.stock import (
    DECLARED,
    TOOL,
    raising,
)


def call_of(run: Callable[[Mapping[str, Any]], Any], arguments: str = "{}", name: str = "stock") -> tuple[str, bool]:
    """Return what a call gives in both loops, which is the same."""
    call, tools = ToolCall(name, arguments, "call_1"), {"stock": Tool(DECLARED, run)}
    found = run_call(call, tools)
    assert asyncio.run(run_call_async(call, tools)) == found
    return found


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no such\ncity"), "ValueError: no such city"),
        (KeyError("apples"), "KeyError: 'apples'"),
        (SettingsError("x is 1, expected 2"), "Error: x is 1, expected 2"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
def test_errors_are_told(error: Exception, told: str, later: bool) -> None:
    assert call_of(raising(error, later=later)) == (told, True)


def test_an_iterator_that_ends_in_a_tool_ends_nothing_else() -> None:
    """StopIteration means something else to generators, and asyncio would wait forever."""
    assert call_of(raising(StopIteration())) == ("StopIteration", True)
    assert call_of(raising(StopIteration(), later=True))[1]


def test_long_errors_are_cut() -> None:
    told, is_error = call_of(raising(ValueError("x" * 10_000)))
    assert is_error
    assert len(told) == len("ValueError: ") + MAX_ERROR


def test_calls_that_no_tool_can_answer() -> None:
    assert call_of(TOOL.run, name="stocks") == ("Error: there is no tool 'stocks'; there are stock", True)
    for arguments in ('{"item": ', "[1]", '{"a": 1, "a": 2}', '{"a": NaN}'):
        told, is_error = call_of(TOOL.run, arguments)
        assert is_error
        assert told == f"Error: the arguments are {arguments!r}, expected one JSON object"
    assert call_of(lambda arguments: 37) == ("TypeError: the tool returned 37, expected text", True)
