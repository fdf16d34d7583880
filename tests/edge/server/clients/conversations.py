"""What all clients are asked."""

from __future__ import annotations

from typing import Any

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Name three kinds of tea."}]
WEATHER: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Paris?"}]
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Get the weather of a city", "parameters": PARAMETERS},
}
RESULT = "It is sunny, 21 degrees."
TOO_LONG = "tea " * 9000  # tokens, for a context of 8192
LIMIT = 24
