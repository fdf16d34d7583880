"""Functions as tools: what a model is told of one, what it may give, and what it gets back."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.runtime.errors import MissingPackageError, PromptError, SettingsError
from edge.runtime.extras import install_command
from edge.tools.function import tool_of


@dataclasses.dataclass
class Point:
    """A point."""

    x: int
    y: float = 0.0


class Options(TypedDict, total=False):
    depth: int


POINT = {
    "title": "Point",
    "description": "A point.",
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "number", "default": 0.0}},
    "required": ["x"],
}


def weather(
    city: str,
    days: int = 3,
    unit: Annotated[Literal["C", "F"], "of temperatures"] = "C",
    at: Point | None = None,
    *,
    exact: bool = False,
) -> dict[str, object]:
    """Look up the weather
    in a city.

    It is invented.

    Args:
        city (str): its name, like "Paris (Texas)":
            never empty
        days: how many
        unit: told twice
    """
    return {"city": city, "days": days, "unit": unit, "at": at, "exact": exact}


def test_a_whole_declaration() -> None:
    assert tool_of(weather).declaration == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Look up the weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"description": 'its name, like "Paris (Texas)": never empty', "type": "string"},
                    "days": {"description": "how many", "type": "integer", "default": 3},
                    "unit": {"description": "of temperatures", "enum": ["C", "F"], "default": "C"},
                    "at": {"anyOf": [POINT, {"type": "null"}]},
                    "exact": {"type": "boolean", "default": False},
                },
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }


def test_what_is_left_out_has_its_default() -> None:
    tool = tool_of(weather)
    assert tool.run({"city": "Köln"}) == '{"city": "Köln", "days": 3, "unit": "C", "at": null, "exact": false}'
    assert tool.run({"city": "a", "at": {"x": 1}, "exact": True, "days": 1}) == (
        '{"city": "a", "days": 1, "unit": "C", "at": {"x": 1, "y": 0.0}, "exact": true}'
    )


EXPECTED = "; expected city, days (optional), unit (optional), at (optional), exact (optional)"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({}, "the arguments of weather are {}: Object missing required field `city`"),
        ({"city": 1}, "the arguments of weather are {'city': 1}: Expected `str`, got `int` - at `$.city`"),
        ({"city": "a", "days": "3"}, "Expected `int`, got `str` - at `$.days`"),
        ({"city": "a", "days": 1.5}, "Expected `int`, got `float` - at `$.days`"),
        ({"city": "a", "days": True}, "Expected `int`, got `bool` - at `$.days`"),
        ({"city": "a", "unit": "K"}, "Invalid enum value 'K' - at `$.unit`"),
        ({"city": "a", "at": {"x": []}}, "Expected `int`, got `array` - at `$.at.x`"),
        ({"city": "a", "days": None}, "Expected `int`, got `null` - at `$.days`"),
        ({"city": "a", "wind": 1}, "Object contains unknown field `wind`"),
    ],
)
def test_wrong_arguments_are_named(written: dict[str, Any], said: str) -> None:
    with pytest.raises(PromptError) as caught:
        tool_of(weather).run(written)
    assert said in str(caught.value)
    assert str(caught.value).endswith(EXPECTED)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["city", "days", "unit", "at", "exact", "x", "__class__"]), JSON, max_size=4))
def test_hostile_arguments_are_refused_or_right(written: dict[str, Any]) -> None:
    try:
        found = json.loads(str(tool_of(weather).run(written)))
    except PromptError:
        return
    assert isinstance(found["city"], str)
    assert isinstance(found["days"], int)
    assert found["unit"] in ("C", "F")


class Shop:
    """A shop."""

    def price(self, item: str) -> float:
        """Return the price of an item."""
        return 1.5

    def __call__(self, item: str) -> str:
        """Buy an item."""
        return f"bought {item}"


async def later(item: str) -> list[str]:
    """Wait for an item."""
    await asyncio.sleep(0)
    return [item]


@functools.cache
def kept(item: str) -> str:
    """Return an item."""
    return item


KINDS: dict[str, tuple[Callable[..., Any], str, str, str]] = {
    "method": (Shop().price, "price", "Return the price of an item.", "1.5"),
    "object": (Shop(), "Shop", "Buy an item.", "bought tea"),
    "async": (later, "later", "Wait for an item.", '["tea"]'),
    "wrapped": (kept, "kept", "Return an item.", "tea"),
    "partial": (functools.partial(weather, "Rome", days=9), "weather", "Look up the weather in a city.", ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_functions(kind: str) -> None:
    function, name, description, result = KINDS[kind]
    tool = tool_of(function)
    assert tool.name == name
    assert tool.declaration["function"]["description"] == description
    if kind == "partial":
        assert list(tool.declaration["function"]["parameters"]["properties"]) == ["unit", "at", "exact"]
        assert json.loads(str(tool.run({"exact": True})))["city"] == "Rome"
        with pytest.raises(PromptError, match="unknown field `days`"):
            tool.run({"days": 1})
        return
    found = tool.run({"item": "tea"})
    if not isinstance(found, str):
        waiting = found

        async def awaited() -> str:
            return await waiting

        found = asyncio.run(awaited())
    assert found == result
    assert tool_of(function, name="other").name == "other"


def by_position(a: int, /) -> None: ...
def many(*values: int) -> None: ...
def named(**values: int) -> None: ...
def untyped(a) -> None: ...  # type: ignore[no-untyped-def]  # what is refused
def complicated(a: complex) -> None: ...
def called(a: Callable[[int], int]) -> None: ...
def undefined(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821  # what is refused
def two_objects(a: Point | Options) -> None: ...


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (by_position, r"by_position has a parameter a, given by position only; a model gives arguments by their names"),
        (many, r"many has a parameter \*values; a model"),
        (named, r"named has a parameter \*\*values; a model"),
        (untyped, "untyped has a parameter a without a type hint, .*`a: str`"),
        (complicated, "complicated has a parameter a of the type <class 'complex'>, which has no JSON schema"),
        (called, r"called has a parameter a of the type .*Callable.*, which has no JSON schema"),
        (undefined, "undefined has a parameter a whose type hint 'Nowhere' cannot be read: name 'Nowhere'"),
        (two_objects, "two_objects has a parameter a of the type .* more than one dict-like type"),
        (lambda: 1, r"a tool is a lambda, .*; write it with def"),
        (functools.partial(lambda a: a, 1), "a tool is a lambda"),
        (Point, "a tool is <class .*Point.*>, expected a function or a Tool"),
        (None, "a tool is None, expected a function or a Tool"),
        (max, "the parameters of max are not known"),
    ],
)
def test_functions_that_cannot_be_described(function: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        tool_of(function)


def test_odd_names_of_parameters() -> None:
    """Python would change the name of an attribute that begins with two underscores."""

    def function(_a: int, __b: int, self: int, __class__: int = 1) -> list[int]:
        return [_a, __b, self]

    assert tool_of(function).run({"_a": 1, "__b": 2, "self": 3}) == "[1, 2, 3]"


def test_without_msgspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edge.tools.schema")
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(MissingPackageError, match=re.escape(f"msgspec is not installed; {install_command('tools')}")):
        tool_of(weather)
