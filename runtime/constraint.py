"""What the whole of an answer must match: JSON, a schema, a regular expression or a grammar, as a setting.

In: what a caller asks for. Out: a frozen record. Knows nothing about how it is followed; `constraints` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from edge.runtime.errors import SettingsError

Kind = Literal["json_schema", "json", "regex", "lark"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the whole answer must match. Raises SettingsError for an unknown kind or a schema that is no JSON."""

    kind: Kind
    text: str  # the schema, the pattern or the grammar; empty for "json"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SettingsError(f"the constraint is a {self.kind!r}, expected one of {', '.join(get_args(Kind))}")
        if not isinstance(self.text, str):
            raise SettingsError(f"the {self.kind} constraint is {self.text!r}, expected text")
        if self.kind == "json_schema":
            _check_schema(self.text)

    @classmethod
    def json_schema(cls, schema: Mapping[str, object] | str) -> Constraint:
        """JSON that a JSON Schema (draft 2020-12) accepts."""
        if isinstance(schema, str):
            return cls("json_schema", schema)
        if not isinstance(schema, Mapping):
            raise SettingsError(f"the JSON schema is {schema!r}, expected an object or its JSON text")
        try:
            return cls("json_schema", json.dumps(dict(schema), ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise SettingsError(f"the JSON schema cannot be written as JSON ({error})") from error

    @classmethod
    def json_object(cls) -> Constraint:
        """Any JSON object."""
        return cls("json", "")

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Text that a regular expression matches from end to end; Rust's syntax, so no look-around."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, grammar: str) -> Constraint:
        """Text of a context-free grammar in llguidance's variant of Lark (llguidance docs/syntax.md)."""
        return cls("lark", grammar)

    @classmethod
    def choice(cls, options: Sequence[str]) -> Constraint:
        """Exactly one of several texts."""
        if isinstance(options, str) or not options or not all(isinstance(option, str) for option in options):
            raise SettingsError(f"the choice is {options!r}, expected a list of one or more texts")
        return cls("lark", "start: " + " | ".join(json.dumps(option, ensure_ascii=False) for option in options))


def _check_schema(text: str) -> None:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"the JSON schema is no JSON ({error})") from error
    if not isinstance(schema, dict):
        raise SettingsError(f"the JSON schema is {text.strip()[:80]}, expected a JSON object")
