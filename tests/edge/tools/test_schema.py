"""Types of arguments: their schema, what a model may write for them, and what a function gets; and results."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, Optional, TypedDict

import numpy as np
import pytest

from edge.runtime.errors import PromptError, SettingsError
from edge.tools.function import tool_of
from edge.tools.schema import text_of

llguidance = pytest.importorskip("llguidance")
pydantic = pytest.importorskip("pydantic")


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    """A point."""

    x: int
    y: float = 0.0


@dataclasses.dataclass
class Node:
    value: int
    following: Node | None = None


class Options(TypedDict, total=False):
    depth: int


class Visit(pydantic.BaseModel):  # type: ignore[name-defined, misc]  # imported at run time
    day: date
    before: Optional[Visit] = None  # noqa: UP045  # in pydantic's own words


def schema_of(hint: Any) -> Any:
    """Return what a model is told of a parameter with this hint."""
    return told(hint)["properties"]["value"]


def told(hint: Any) -> Any:
    def function(value: Any) -> str:
        return repr(value)

    function.__annotations__["value"] = hint
    schema = tool_of(function).declaration["function"]["parameters"]
    llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    assert not llguidance.LLMatcher.validate_grammar(json.dumps({"grammars": [{"json_schema": schema}]}))
    return schema


def taken(hint: Any, value: Any) -> Any:
    """Return what the function gets for a value that a model wrote."""
    seen = []

    def function(value: Any) -> None:
        seen.append(value)

    function.__annotations__["value"] = hint
    tool_of(function).run(json.loads(json.dumps({"value": value})))
    return seen[0]


NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
TYPES: list[tuple[Any, dict[str, Any], Any, Any]] = [  # hint, schema, what a model writes, what a function gets
    (str, {"type": "string"}, "a", "a"),
    (int, {"type": "integer"}, 3, 3),
    (float, {"type": "number"}, 3, 3.0),
    (bool, {"type": "boolean"}, True, True),
    (None, {"type": "null"}, None, None),
    (Any, {}, [1, {"a": None}], [1, {"a": None}]),
    (Literal["b", "a"], {"enum": ["a", "b"]}, "b", "b"),
    (Color, {"title": "Color", "enum": ["blue", "red"]}, "red", Color.RED),
    (list[int], {"type": "array", "items": {"type": "integer"}}, [1], [1]),
    (Sequence[str], {"type": "array", "items": {"type": "string"}}, ["a"], ["a"]),
    (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}, [1, 2], (1, 2)),
    (set[str], {"type": "array", "items": {"type": "string"}}, ["a"], {"a"}),
    (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}, {"a": 1}, {"a": 1}),
    (Mapping[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}, {"a": 1}, {"a": 1}),
    (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None, None),
    (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 3, 3),  # noqa: UP045  # an older spelling
    (int | str, {"anyOf": [{"type": "integer"}, {"type": "string"}]}, "a", "a"),
    (Annotated[int, "how many"], {"type": "integer", "description": "how many"}, 1, 1),
    (
        list[Annotated[int, "a year"]],
        {"type": "array", "items": {"type": "integer", "description": "a year"}},
        [1999],
        [1999],
    ),
    (date, {"type": "string", "format": "date"}, "2026-01-02", date(2026, 1, 2)),
    (datetime, {"type": "string", "format": "date-time"}, "2026-01-02T12:00:00Z", NOON),
    (
        dict[str, list[datetime]],
        {
            "type": "object",
            "additionalProperties": {"type": "array", "items": {"type": "string", "format": "date-time"}},
        },
        {"a": ["2026-01-02T12:00:00Z"]},
        {"a": [NOON]},
    ),
    (
        Point,
        {
            "title": "Point",
            "description": "A point.",
            "type": "object",
            "properties": {"x": {"type": "integer"}, "y": {"type": "number", "default": 0.0}},
            "required": ["x"],
        },
        {"x": 1},
        Point(1),
    ),
    (
        Options,
        {"title": "Options", "type": "object", "properties": {"depth": {"type": "integer"}}, "required": []},
        {"depth": 2},
        {"depth": 2},
    ),
]


@pytest.mark.parametrize(("hint", "schema", "written", "got"), TYPES, ids=[str(row[0]) for row in TYPES])
def test_types(hint: Any, schema: dict[str, Any], written: Any, got: Any) -> None:
    assert schema_of(hint) == schema
    found = taken(hint, written)
    assert found == got
    assert type(found) is type(got)


def test_a_class_that_contains_itself() -> None:
    schema = told(Node)
    assert schema["properties"]["value"] == {"$ref": "#/$defs/Node"}
    inner = {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}], "default": None}
    assert schema["$defs"]["Node"]["properties"]["following"] == inner
    assert taken(Node, {"value": 1, "following": {"value": 2}}) == Node(1, Node(2))


def test_models_of_pydantic() -> None:
    schema = told(Visit)
    assert schema["$defs"]["Visit"]["properties"]["day"]["format"] == "date"
    found = taken(Visit, {"day": "2026-01-02", "before": {"day": "2025-01-02"}})
    assert found == Visit(day=date(2026, 1, 2), before=Visit(day=date(2025, 1, 2)))
    with pytest.raises(PromptError, match="day"):
        taken(Visit, {"day": "yesterday"})


def test_two_classes_of_one_name() -> None:
    """Those of pydantic name their parts themselves."""
    other = pydantic.create_model("Node", value=(str, ...), following=(Optional["Node"], None))

    def function(a: Any, b: Any) -> None: ...

    function.__annotations__.update(a=Node, b=other)
    with pytest.raises(SettingsError, match="function has parameters of two types named Node; rename one"):
        tool_of(function)


def test_a_function_gets_whole_dataclasses() -> None:
    """With defaults in the objects themselves, where vars() finds them."""
    (found,) = taken(list[Point], [{"x": 1}])
    assert vars(found) == {"x": 1, "y": 0.0}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        (None, "null"),
        ({"city": "Zürich", 1: (2.5, True)}, '{"city": "Zürich", "1": [2.5, true]}'),
        (Point(1), '{"x": 1, "y": 0.0}'),
        ([Color.RED, NOON], '["red", "2026-01-02T12:00:00Z"]'),
        (Visit(day=date(2026, 1, 2)), '{"day": "2026-01-02", "before": null}'),
        ({"mean": np.float32(0.5), "all": np.arange(2)}, '{"mean": 0.5, "all": [0, 1]}'),
    ],
)
def test_results(value: object, text: str) -> None:
    assert text_of(value) == text


@pytest.mark.parametrize("value", [object(), open, [Point], 1j])
def test_results_that_are_not_json(value: object) -> None:
    with pytest.raises(TypeError, match=r"the tool returned .*, expected text or what JSON can hold"):
        text_of(value)
