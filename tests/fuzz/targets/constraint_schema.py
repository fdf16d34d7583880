"""JSON schemas as constraints: refused when they start, or followed, and then what is written keeps them."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from edge.runtime.constraint import Constraint
from edge.runtime.constraint_masks import Constraints
from edge.runtime.errors import SettingsError
from edge.runtime.tokenizer import Tokenizer
from tests import tiny
from tests.fuzz.target import Target

STEPS = 40
_STOP = 256  # the first of tests/tiny.py

_SCHEMAS: tuple[dict[str, Any], ...] = (
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5, "pattern": "^[a-c]*$"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150, "multipleOf": 5},
            "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 2, "minItems": 1},
        },
        "required": ["age"],
        "additionalProperties": False,
        "patternProperties": {"^x": {"type": "boolean"}},
    },
    {
        "$defs": {
            "n": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}}
        },
        "allOf": [{"$ref": "#/$defs/n"}, {"required": ["next"]}],
    },
    {"type": "array", "prefixItems": [{"const": 1}, {"type": ["string", "null"], "format": "date"}], "items": False},
    {"oneOf": [{"type": "boolean"}, {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2}]},
)


def _seeds(folder: Path) -> list[bytes]:
    tiny.write_tokenizer(folder)
    return [json.dumps(schema).encode() for schema in _SCHEMAS]


@cache
def _constraints(folder: Path) -> tuple[Tokenizer, Constraints]:
    tokenizer = Tokenizer(folder / "tokenizer.json")
    return tokenizer, Constraints(tokenizer, tokenizer.num_tokens, tiny.STOP_IDS)


def _read(raw: bytes, folder: Path) -> object:
    tokenizer, constraints = _constraints(folder)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError("not UTF-8") from error
    constraint = Constraint.json_schema(text)
    state, random, written = constraints.start(constraint), Random(len(raw)), b""
    for _ in range(STEPS):
        allowed = state.allowed()
        if allowed[tiny.STOP_IDS[0]]:
            _check(constraint.text, written.decode("utf-8"))
        if state.finished:
            break
        chosen = random.choice(np.flatnonzero(allowed).tolist())
        state.advance(chosen)
        if chosen in tiny.STOP_IDS:
            break
        written += tokenizer.token_bytes(chosen)
    return written


def _check(schema: str, written: str) -> None:
    given = json.loads(schema) if schema else {"type": "object"}
    value = json.loads(written)
    if "x-guidance" not in schema and "$schema" not in schema and '"$id"' not in schema:
        assert keeps(given, value, given), f"{written} does not keep {schema}"


def keeps(schema: Any, value: Any, root: Any) -> bool:
    """Whether a value keeps a schema, as far as this knows its keywords; it says yes to what it does not know."""
    if not isinstance(schema, dict):
        return schema is not False
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) or kinds is None else [kinds]
    reference = schema.get("$ref")
    target = root if reference == "#" else root.get("$defs", {}).get("n", True) if reference == "#/$defs/n" else True
    return (
        (kinds is None or any(_is(value, kind) for kind in kinds))
        and ("const" not in schema or _equal(value, schema["const"]))
        and ("enum" not in schema or any(_equal(value, one) for one in schema["enum"]))
        and all(keeps(one, value, root) for one in schema.get("allOf", ()))
        and all(any(keeps(o, value, root) for o in schema[key]) for key in ("anyOf", "oneOf") if key in schema)
        and keeps(target, value, root)
        and _keeps_own(schema, value, root)
    )


def _keeps_own(schema: dict[str, Any], value: Any, root: Any) -> bool:
    """The keywords of the value's own type."""
    match value:
        case str():
            return _keeps_text(schema, value)
        case dict():
            return _keeps_object(schema, value, root)
        case list():
            return _keeps_list(schema, value, root)
        case bool() | None:
            return True
        case _:
            return _keeps_number(schema, value)


def _keeps_list(schema: dict[str, Any], value: list[Any], root: Any) -> bool:
    first, rest = schema.get("prefixItems", []), schema.get("items", True)
    rest = True if isinstance(rest, list) else rest
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
        return False
    return all(keeps(first[i] if i < len(first) else rest, item, root) for i, item in enumerate(value))


def _keeps_text(schema: dict[str, Any], value: str) -> bool:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
        return False
    return schema.get("pattern") != "^[a-c]*$" or re.fullmatch("[a-c]*", value) is not None


def _keeps_object(schema: dict[str, Any], value: dict[str, Any], root: Any) -> bool:
    properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    if not set(schema.get("required", ())) <= set(value):
        return False
    for name, inner in value.items():
        by_pattern = [one for pattern, one in patterns.items() if pattern == "^x" and name.startswith("x")]
        if name in properties:
            by_pattern.append(properties[name])
        elif not by_pattern and set(patterns) <= {"^x"}:
            by_pattern.append(schema.get("additionalProperties", True))
        if not all(keeps(one, inner, root) for one in by_pattern):
            return False
    return True


def _keeps_number(schema: dict[str, Any], value: float) -> bool:
    if math.isinf(value):  # 1e999, which is JSON, and no float
        return True
    if not schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf):
        return False
    below, above = schema.get("exclusiveMaximum", math.inf), schema.get("exclusiveMinimum", -math.inf)
    if not isinstance(below, bool) and not isinstance(above, bool) and not above < value < below:
        return False
    multiple = schema.get("multipleOf")
    return multiple != 5 or value % 5 == 0


def _is(value: Any, kind: Any) -> bool:
    if kind in ("integer", "number"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (kind == "number" or math.isinf(value) or value == int(value))
    kinds = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None)}
    return isinstance(value, kinds[kind])


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


TARGETS = (
    Target(
        "constraint", _seeds, _read, "json",
        (b'"$ref": "#"', b'"pattern": "^a"', b'"uniqueItems": true', b'"format": "path"', b'"additionalProperties": {}',
         b'"patternProperties": {"age": {}}', b'"multipleOf": 7', b'"minItems": 9', b'"oneOf": []', b'"const": 1'),
    ),
)  # fmt: skip
