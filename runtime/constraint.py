"""What a whole answer must match, as a setting: JSON, a schema, a regular expression or a grammar.

In: a caller's request. Out: a frozen record. Knows nothing about how it is enforced; `constraint_masks` does.

A schema may come in OpenAI's wrappers, as in the setting response_format:

    {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}, "strict": true}}
    {"type": "json_schema", "name": ..., "schema": {...}}
    {"name": ..., "schema": {...}}
    {"type": "json_object"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from edge.runtime.errors import SettingsError, in_words, shown
from edge.runtime.json_reader import parse_json

Kind = Literal["json_schema", "json", "regex", "lark"]
_ADVICE = "expected a JSON object, the schema"
_WRAPPER = {"type", "name", "description", "schema", "strict"}  # keys around a schema, or beside it


class SchemaMaker(Protocol):
    """A class that knows its JSON schema, as pydantic's do."""

    def model_json_schema(self) -> Mapping[str, Any]: ...  # Any: JSON


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the whole answer must match. Raises SettingsError for an unknown kind or a schema that is not JSON."""

    kind: Kind
    text: str  # the schema, the pattern or the grammar; empty for "json"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SettingsError(f"the constraint is a {shown(self.kind)}, expected one of {', '.join(get_args(Kind))}")
        if not isinstance(self.text, str):
            raise SettingsError(f"the {self.kind} constraint is {shown(self.text)}, expected text")
        if self.kind == "json_schema":
            given = parse_json(self.text, "the JSON schema", SettingsError, _ADVICE)
            schema = _unwrapped(given)
            if schema is None:
                object.__setattr__(self, "kind", "json")
                object.__setattr__(self, "text", "")
            elif schema is not given:
                object.__setattr__(self, "text", json.dumps(schema, ensure_ascii=False))

    @classmethod
    def json_schema(cls, schema: Mapping[str, object] | str | SchemaMaker | type[SchemaMaker]) -> Constraint:
        """Require JSON that a JSON Schema (draft 2020-12) accepts: the schema, its text, or a pydantic model.

        OpenAI's wrappers are removed; {"type": "json_object"} means any JSON object.
        """
        if isinstance(schema, str):
            return cls("json_schema", schema)
        if callable(make := getattr(schema, "model_json_schema", None)):
            try:
                schema = make()
            except Exception as error:  # whatever the caller's class raises
                raise SettingsError(f"{shown(schema)} does not give its JSON schema ({shown(str(error))})") from error
        if not isinstance(schema, Mapping):
            raise SettingsError(f"the JSON schema is {shown(schema)}, expected an object or its JSON text")
        try:
            return cls("json_schema", json.dumps(dict(schema), ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise SettingsError(f"the JSON schema cannot be written as JSON ({in_words(error)})") from error

    @classmethod
    def json_object(cls) -> Constraint:
        """Require a JSON object, with any content."""
        return cls("json", "")

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Require text that a regular expression matches as a whole; Rust's syntax, so without look-around."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, grammar: str) -> Constraint:
        """Require text of a context-free grammar, in llguidance's variant of Lark (llguidance docs/syntax.md)."""
        return cls("lark", grammar)

    @classmethod
    def choice(cls, options: Sequence[str]) -> Constraint:
        """Require exactly one of several texts."""
        if isinstance(options, str) or not options or not all(isinstance(option, str) for option in options):
            raise SettingsError(f"the choice is {shown(options)}, expected a list of one or more texts")
        # Upper case makes it a terminal: a rule could have at most 2,000 alternatives.
        return cls("lark", "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(o, ensure_ascii=False) for o in options))


def _unwrapped(given: object) -> dict[str, Any] | None:
    """Return the schema itself, or None for any JSON object. Raises SettingsError if there is none."""
    if not isinstance(given, dict):
        raise SettingsError(f"the JSON schema is {shown(given)}, {_ADVICE}")
    kind, inner = given.get("type"), given.get("schema")
    if kind == "json_object":
        return None
    if kind == "json_schema":
        around = given.get("json_schema", given)
        inner = around.get("schema") if isinstance(around, dict) else None
        if not isinstance(inner, dict):
            raise SettingsError(
                'a "json_schema" holds no schema, expected {"type": "json_schema", "json_schema": {"name": "...", '
                '"schema": {...}}}'
            )
        return inner
    if isinstance(inner, dict) and isinstance(given.get("name"), str) and set(given) <= _WRAPPER - {"type"}:
        return inner
    return given
