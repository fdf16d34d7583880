"""A scripted model that calls one function, that function in several forms, and readers of the loop's events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from edge.tools.events import Done, Event, Result, Text
from edge.tools.tool import Tool

QUESTION = "How many apples are left?"
CALL = 'stock\n{"item": "apples"}'
ANSWER = "There are 37 apples."
ANSWERS = {QUESTION: CALL, "Result of stock:\n37": ANSWER, "Thanks": "You are welcome."}


def stock(item: str) -> int:
    """Return how many of an item are left."""
    return {"apples": 37}[item]


async def stock_async(item: str) -> int:
    """Return how many of an item are left."""
    await asyncio.sleep(0)
    return stock(item)


DECLARED: Any = {"type": "function", "function": {"name": "stock", "parameters": {"properties": {"item": {}}}}}
TOOL = Tool(DECLARED, lambda arguments: str(stock(arguments["item"])))
WAYS: dict[str, Any] = {
    "functions": [stock],
    "names": {"stock": stock},
    "async": {"stock": stock_async},
    "a Tool": [TOOL],
    "a renamed Tool": {
        "stock": Tool({"type": "function", "function": {**DECLARED["function"], "name": "x"}}, TOOL.run)
    },
}


async def collected(events: AsyncGenerator[Event, None]) -> list[Event]:
    return [event async for event in events]


def done(events: list[Event]) -> Done:
    *_, last = events
    assert isinstance(last, Done)
    return last


def results(events: list[Event]) -> list[Result]:
    return [event for event in events if isinstance(event, Result)]


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def raising(error: BaseException, *, later: bool = False) -> Callable[[Mapping[str, Any]], Any]:
    async def run_later(arguments: Mapping[str, Any]) -> str:
        raise error

    def run(arguments: Mapping[str, Any]) -> str:
        raise error

    return run_later if later else run
