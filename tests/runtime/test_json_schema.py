"""Schemas as people have them: what says nothing restricts nothing, what leads nowhere is found at the start."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.runtime.constraint import Constraint
from edge.runtime.constraint_masks import Constraints, ConstraintState
from edge.runtime.errors import GenerationError, SettingsError
from edge.runtime.json_schema import prepare_schema
from edge.runtime.tokenizer import Tokenizer, byte_of_character
from tests import tiny

pytest.importorskip("llguidance", minversion="1.9")

ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#/$defs/a"}}, "required": ["next"]}


@pytest.fixture(scope="module")
def constraints(tmp_path_factory: pytest.TempPathFactory) -> Constraints:
    folder = tmp_path_factory.mktemp("bytes")
    tiny.write_tokenizer(folder)
    tokenizer = Tokenizer(folder / "tokenizer.json")
    return Constraints(tokenizer, tokenizer.num_tokens, tiny.STOP_IDS)


ID_OF = {char: i for i, char in enumerate(sorted(byte_of_character()))}
BYTE_IDS = {byte: ID_OF[char] for char, byte in byte_of_character().items()}  # as tests/tiny.py numbers them


def write(state: ConstraintState, text: str) -> bool:
    """Whether a constraint takes a text from beginning to end; a token is a byte here."""
    try:
        for byte in text.encode():
            assert state.allowed()[BYTE_IDS[byte]]
            state.advance(BYTE_IDS[byte])
    except (GenerationError, AssertionError):
        return False
    return bool(state.allowed()[tiny.STOP_IDS[0]])


def takes(constraints: Constraints, schema: dict[str, Any], value: object) -> bool:
    return write(constraints.start(Constraint.json_schema(schema)), json.dumps(value))


@pytest.mark.parametrize(
    "schema",
    [
        {"format": "path"},
        {"format": "binary"},
        {"format": "password"},
        {"format": "ipv4network"},
        {"format": "uri-reference"},
        {"format": "idn-email", "title": "t", "description": "d", "default": 5, "examples": [1], "$comment": "c"},
        {"deprecated": True, "readOnly": True, "writeOnly": True, "nullable": True, "example": 1, "x-order": 3},
        {"contentEncoding": "base64", "contentMediaType": "image/png", "contentSchema": True},
        {"discriminator": {"propertyName": "kind"}, "xml": {}, "externalDocs": {"url": "u"}},
        {"uniqueItems": False, "dependentRequired": {}, "propertyNames": {"type": "string"}},
        {"unevaluatedProperties": True, "unevaluatedItems": {}, "minProperties": 0, "minContains": 1},
        {"if": {"type": "string"}},
        {"then": {"maxLength": 1}, "else": False},
        {"$schema": "https://spec.openapis.org/oas/3.1/dialect/base"},
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {"format": "colour"}}},
    ],
)
def test_what_says_nothing_restricts_nothing(constraints: Constraints, schema: dict[str, Any]) -> None:
    assert takes(constraints, {"type": "string", **schema}, "anything")
    nested = {"type": "object", "properties": {"a": {"items": {"anyOf": [{"type": "string", **schema}]}}}}
    if "$schema" not in schema:
        assert takes(constraints, nested, {"a": ["anything"]})


def test_formats_that_are_known_restrict(constraints: Constraints) -> None:
    assert takes(constraints, {"type": "string", "format": "date"}, "2024-02-29")
    assert not takes(constraints, {"type": "string", "format": "date"}, "anything")


def test_formats_stay_where_they_are_no_keyword(constraints: Constraints) -> None:
    """As names of properties, in what enumerations hold, and where a $ref leads to."""
    schema = {
        "type": "object",
        "properties": {
            "format": {"enum": ["path", {"format": "path"}]},
            "in": {"$ref": "#/components/schemas/P"},
        },
        "required": ["format", "in"],
        "additionalProperties": False,
        "components": {"schemas": {"P": {"type": "string", "format": "path"}}},
    }
    assert takes(constraints, schema, {"format": {"format": "path"}, "in": "/tmp"})
    assert takes(constraints, schema, {"format": "path", "in": "/tmp"})
    assert not takes(constraints, schema, {"format": {}, "in": "/tmp"})
    assert not takes(constraints, schema, {"format": "path", "in": 5})


def test_unique_items_have_a_way_round(constraints: Constraints) -> None:
    unique = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    with pytest.raises(SettingsError, match=r'uniqueItems.*"x-guidance": {"lenient": true}'):
        constraints.start(Constraint.json_schema(unique))
    assert takes(constraints, {**unique, "x-guidance": {"lenient": True}}, [1, 1])
    assert takes(constraints, {**unique, "maxItems": 1}, [1])
    one_of = {"oneOf": [{"type": "integer"}, {"type": "integer", "minimum": 5}]}
    with pytest.raises(SettingsError, match="oneOf"):
        constraints.start(Constraint.json_schema(one_of))
    assert takes(constraints, {**one_of, "x-guidance": {"coerce_one_of": True, "item_separator": ", "}}, 7)
    with pytest.raises(SettingsError, match="uniqueItems"):
        constraints.start(Constraint.json_schema({**unique, "x-guidance": {"coerce_one_of": True}}))


def test_bounds_of_64_bits(constraints: Constraints) -> None:
    schema = {"type": "integer", "format": "int64", "minimum": -(2**63), "maximum": 2**63 - 1}
    for value in (0, -(10**18), 9 * 10**18):
        assert takes(constraints, schema, value)
    assert not takes(constraints, schema, 10**19)


SCHEMA = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": False}


class Model:
    """As a pydantic model."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return SCHEMA


@pytest.mark.parametrize(
    "given",
    [
        {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
        {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True},
        {"name": "n", "description": "d", "schema": SCHEMA, "strict": True},
        Model,
        Model(),
    ],
)
def test_wrappers_are_taken_off(given: Any) -> None:
    expected = Constraint.json_schema(SCHEMA)
    assert Constraint.json_schema(given) == expected
    if isinstance(given, dict):
        assert Constraint.json_schema(json.dumps(given)) == expected
        assert Constraint("json_schema", json.dumps(given)) == expected


def test_any_object_by_its_wrapper() -> None:
    assert Constraint.json_schema({"type": "json_object"}) == Constraint.json_object()
    assert Constraint.json_schema('{"type": "json_object"}') == Constraint.json_object()


def test_a_schema_that_only_looks_like_a_wrapper(constraints: Constraints) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "schema": {"type": "null"}}}
    assert takes(constraints, schema, {"name": "n", "schema": None})
    named = {"title": "t", "name": "n", "schema": {"type": "null"}, "type": "integer"}
    assert takes(constraints, named, 5)


class Broken:
    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        raise RuntimeError("no schema for Thing")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"type": "json_schema", "json_schema": {"name": "n"}}, "holds no schema"),
        ({"type": "json_schema", "json_schema": "x"}, "holds no schema"),
        ({"type": "json_schema"}, "holds no schema"),
        (Broken, "no schema for Thing"),
        ("[" * 100_000, "nest"),
        ('{"minimum": 1e999}', "beyond a 64-bit float"),
        ('{"const": "\\ud83d"}', "half a character"),
        ('{"maximum": ' + "9" * 400 + "}", "400 digits"),
    ],
)
def test_no_schema_in_it(given: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Constraint.json_schema(given)


def chain(length: int, link: str) -> dict[str, Any]:
    """Definitions that lead to each other, by pointer or by name."""
    definitions: dict[str, Any] = {
        f"a{i}": {
            "$anchor": f"n{i}",
            "type": "object",
            "properties": {"x": {"$ref": link.format(i + 1)}},
            "required": ["x"],
        }
        for i in range(length)
    }
    return {"$ref": link.format(0), "$defs": {**definitions, f"a{length}": {"$anchor": f"n{length}", "type": "null"}}}


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (  # a name that can never come behind a comma
            Constraint.json_schema({
                "type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"],
                "additionalProperties": False, "patternProperties": {"^score$": {"type": "integer"}},
            }),
            "leads nowhere: after '{\"score\": 0, ' nothing may follow",
        ),
        (  # the same in an array, behind other names
            Constraint.json_schema({
                "type": "array", "items": {
                    "type": "object", "properties": {"text": {"type": "string"}, "a": {}, "b": {}},
                    "required": ["text"], "additionalProperties": False, "patternProperties": {"^(a|b)$": {}},
                },
            }),
            "leads nowhere",
        ),
        (Constraint.json_schema({"$ref": "#"}), "has no end"),
        (Constraint.json_schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "has no end"),
        (Constraint.json_schema({"$ref": "#/$defs/a", "$defs": {"a": ENDLESS}}), "has no end"),
        (Constraint.json_schema({"properties": {"p": {"$ref": "#/$defs/a"}}, "$defs": {"a": ENDLESS}}), "has no end"),
        (
            Constraint.json_schema({
                "$ref": "#/$defs/a",
                "$defs": {"a": {"type": "array", "minItems": 2, "items": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
            }),
            "has no end",
        ),
        (Constraint.json_schema({"enum": []}), "Unsatisfiable"),
        (Constraint.json_schema({"const": 1, "enum": [2]}), "Unsatisfiable"),
        (Constraint.json_schema({"type": "string", "minLength": 3, "maxLength": 2}), "Unsatisfiable"),
        (Constraint.json_schema({"type": "array", "minItems": 3, "maxItems": 2}), "Unsatisfiable"),
        (Constraint.json_schema({"type": "object", "required": ["a"], "additionalProperties": False}), "Unsatisf"),
        (Constraint.json_schema({"$ref": "#/$defs/nowhere"}), "does not exist"),
        (Constraint.json_schema({"$ref": "file:///etc/passwd"}), "does not fetch resources"),
        (Constraint.json_schema(chain(3000, "#/$defs/a{}")), "nest 9,0.. deep altogether"),
        (Constraint.json_schema(chain(3000, "#n{}")), "deep altogether"),
        (Constraint.json_schema({"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]}), "multipl"),
        (Constraint.json_schema({"type": "integer", "multipleOf": 999983}), "multipleOf is 999983"),
        (Constraint.json_schema({"properties": {f"p{i}": {} for i in range(5000)}}), "5,000 properties"),
        (Constraint.json_schema({"type": "object", "required": [f"p{i}" for i in range(30_000)]}), "30,000 required"),
        (Constraint.json_schema({"const": list(range(30_000))}), "const and enum"),
        (Constraint.json_schema({"description": "a" * 2_000_000}), "2,000,019 characters"),
        (Constraint.regex("(a|b)?" * 30_000), "180,000 characters"),
        (Constraint.regex(r"[^\s\S]"), "nothing may follow"),
        (Constraint.lark('start: "a" start'), "leads nowhere"),
        (Constraint.lark('start: "x" T\nT: /a+/ & /b+/'), "."),
        (Constraint.lark("start: r0\n" + "".join(f'r{i}: "a" r{i + 1} | "b"\n' for i in range(3000)) + 'r3000: "x"'),
         "3,002 rules"),
        (Constraint.lark("start: %json " + json.dumps(chain(3000, "#/$defs/a{}"))), "deep altogether"),
        (Constraint.lark("start: %json " + "[" * 5 + '{"a":' * 5000), "refused|nest"),
        (Constraint.lark("start: " + " | ".join(f'"w{i}"' for i in range(5000))), "items; max is 2000"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_found_at_the_start(
    constraints: Constraints, constraint: Constraint, said: str
) -> None:
    started = time.monotonic()
    with pytest.raises(SettingsError, match=said) as caught:
        constraints.start(constraint)
    assert time.monotonic() - started < 60
    assert len(str(caught.value)) < 700
    with pytest.raises(SettingsError):  # and every time
        constraints.start(constraint)


def test_recursion_with_an_end_is_fine(constraints: Constraints) -> None:
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}, "required": ["kids"]}
    assert takes(constraints, tree, {"kids": [{"kids": []}]})
    linked = {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["next"],
            }
        },
    }
    assert takes(constraints, linked, {"next": {"next": None}})
    assert takes(constraints, chain(100, "#/$defs/a{}"), _nested(100))


def _nested(depth: int) -> object:
    return {"x": _nested(depth - 1)} if depth else None


def test_many_choices(constraints: Constraints) -> None:
    state = constraints.start(Constraint.choice([f"word {i}" for i in range(20_000)]))
    assert write(state, "word 17777")


def test_what_is_followed_in_bounded_time(constraints: Constraints) -> None:
    """Grammars of which the search for dead ends would have no end, or would take much memory."""
    for constraint in (
        Constraint.lark('start: s\ns: s s | "a" | s s s |'),
        Constraint.json_schema({"anyOf": [{"type": "object", "properties": {f"a{i}": {}}} for i in range(150)]}),
        Constraint.json_schema({"type": "array", "items": {"type": "integer"}, "maxItems": 10**9}),
        Constraint.json_schema({"type": "string", "pattern": "^((a{1,99}){1,9}|.*b.{20})$"}),
    ):
        started = time.monotonic()
        constraints.start(constraint)
        assert time.monotonic() - started < 60
        again = time.monotonic()
        constraints.start(constraint)
        assert time.monotonic() - again < 30


def test_prepared_schemas_are_the_library_s_to_refuse() -> None:
    """What demands something stays, whatever it is."""
    schema = {
        "not": {"const": 1}, "uniqueItems": True, "format": 5, "minProperties": 1, "if": {}, "then": {"format": "date"},
        "propertyNames": {"pattern": "a"}, "unevaluatedProperties": False, "items": [{"format": "date"}, 5, None],
    }  # fmt: skip
    kept = json.loads(json.dumps(schema))
    assert prepare_schema(schema, lambda name: name == "date", lambda _uri: True) == kept


def test_no_process_dies_of_a_schema(tmp_path: Path) -> None:
    """Chains as long as are let through, in a thread, whose stack is the smallest."""
    tiny.write_tokenizer(tmp_path)
    script = f"""
import json, threading
from pathlib import Path
from edge.runtime.constraint import Constraint
from edge.runtime.constraint_masks import Constraints, MAX_RULES
from edge.runtime.errors import SettingsError
from edge.runtime.json_schema import MAX_LEVELS
from edge.runtime.tokenizer import Tokenizer
tokenizer = Tokenizer(Path({str(tmp_path)!r}) / "tokenizer.json")
starts = Constraints(tokenizer, tokenizer.num_tokens, {tiny.STOP_IDS})
links = [
    lambda r: {{"$ref": r}},
    lambda r: {{"$ref": r, "type": "object"}},
    lambda r: {{"type": "object", "properties": {{"x": {{"$ref": r}}}}}},
    lambda r: {{"anyOf": [{{"$ref": r}}, {{"type": "null"}}]}},
    lambda r: {{"allOf": [{{"$ref": r}}, {{"type": "object"}}]}},
    lambda r: {{"type": "array", "items": {{"items": {{"items": {{"$ref": r}}}}}}}},
]
def run():
    for link in links:
        for length in range(MAX_LEVELS, 10, -50):
            definitions = {{f"a{{i}}": link(f"#/$defs/a{{i + 1}}") for i in range(length)}}
            schema = {{"$ref": "#/$defs/a0", "$defs": {{**definitions, f"a{{length}}": {{"type": "object"}}}}}}
            try:
                starts.start(Constraint.json_schema(schema))
                break
            except SettingsError as error:
                assert "deep altogether" in str(error) or "Too many items" in str(error), error
        else:
            raise AssertionError("none is let through")
    rules = "".join(f'r{{i}}: "a{{i}}" r{{i + 1}} "c" | r0\\n' for i in range(MAX_RULES - 2))
    starts.start(Constraint.lark("start: r0\\n" + rules + f'r{{MAX_RULES - 2}}: "x" | r0 "y"'))
    print("alive")
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=100)
    assert done.stdout == "alive\n", done.stderr


def test_text_written_before_a_constraint_fails_is_not_lost(constraints: Constraints) -> None:
    """The state is of no use then, but says so, and changes no logits that it was given."""
    state = constraints.start(Constraint.regex("ab+"))
    state.advance(BYTE_IDS[ord("a")])
    row = np.zeros(261, np.float32)
    with pytest.raises(GenerationError, match="may not come here"):
        state.advance(BYTE_IDS[ord("x")])
    with pytest.raises(GenerationError, match="cannot be followed further"):
        state.mask(row)
    assert not row.any()
