"""A JSON schema as llguidance can follow it: without keywords that have no effect, and small enough to be safe.

In: a schema, and which formats and dialects the library knows. Out: the schema to give to it. Raises SettingsError for
one that would end the process. Knows nothing about tokens or grammars.

Keywords that restrict nothing are removed: JSON Schema 2020-12 makes `format` an annotation, so a format that the
library does not know goes; so do `uniqueItems: false`, a `$schema` of an unknown dialect, and the like. Keywords that
restrict something stay, for the library to follow or to refuse. OpenAPI's `nullable` is not a keyword of JSON Schema
and has no effect.

The library recurses into every level of a schema and every $ref in it, without a limit: a chain of 1,000 definitions
overflows its stack, which no handler catches. Multiples are enumerated one by one, in gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from edge.runtime.errors import SettingsError, shown

MAX_LEVELS = 1000  # of nesting, in the schema itself and in everything that a $ref leads to; 3,000 were too many
MAX_NAMES = 2000  # properties of one object: their cost grows with the square
MAX_VALUES = 10_000  # within lists and objects of `const` and `enum`
MAX_MULTIPLE = 100_000  # 0.1 s and 25 MB; 2,000,000 take 25 s
_NAMED_LEVELS = 10  # assumed for a $ref that we do not follow
_SWEEPS = 50  # over all schemas, to find those without an end

_ONE = (
    "additionalProperties", "additionalItems", "items", "contains", "not", "if", "then", "else", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties", "contentSchema",
)  # fmt: skip
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_VALUES = ("const", "enum", "default", "examples", "example")  # they hold values, not schemas
_LARGEST_INT = 9223372036854774784  # the last float64 before 2**63, where the library's integers end

Schema = dict[str, Any]  # JSON


def prepare_schema(schema: Schema, knows_format: Callable[[str], bool], knows_dialect: Callable[[str], bool]) -> Schema:
    """Remove keywords without effect, in place, and return the schema. Raises SettingsError for one that is unsafe."""
    if "$schema" in schema and not (isinstance(schema["$schema"], str) and knows_dialect(schema["$schema"])):
        del schema["$schema"]
    found = _Found(schema)
    _check_size(found)
    for one in found.schemas:
        _leave_out(one, knows_format)
        _narrow(one)
    if (endless := _endless(found)) is not None:
        raise SettingsError(
            f"the JSON schema has no end: {shown(endless)} contains itself and requires it each time; "
            "make it optional, or allow null there"
        )
    return schema


class _Found:
    """All schemas within one, including those that only a $ref leads to."""

    def __init__(self, root: Schema) -> None:
        self.root = root
        self.schemas: list[Schema] = []
        self.targets: dict[str, Schema] = {}  # by $ref
        self.named: set[str] = set()  # $refs to a name or another document, which are left to the library
        known: set[int] = set()
        waiting = [root]
        while waiting:
            one = waiting.pop()
            if id(one) in known:
                continue
            known.add(id(one))
            self.schemas.append(one)
            waiting += _inner(one)
            reference = one.get("$ref")
            if isinstance(reference, str) and reference not in self.targets:
                target = _target(root, reference)
                if isinstance(target, dict):
                    self.targets[reference] = target
                    waiting.append(target)
                else:
                    self.named.add(reference)

    def target(self, schema: Schema) -> Schema | None:
        """Return what a schema's $ref leads to."""
        reference = schema.get("$ref")
        return self.targets.get(reference) if isinstance(reference, str) else None


def _inner(schema: Schema) -> Iterator[Schema]:
    """Yield the schemas directly within one, not following its $ref."""
    for key, value in schema.items():
        if key in _ONE and isinstance(value, dict):
            yield value
        elif key in _BY_NAME and isinstance(value, dict):
            yield from (inner for inner in value.values() if isinstance(inner, dict))
        elif key in _SEVERAL and isinstance(value, list):
            yield from (inner for inner in value if isinstance(inner, dict))


def _target(root: Schema, reference: str) -> object:
    """Return what a JSON pointer leads to; None for other references, for nowhere, and for values without schemas."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    value: object = root
    for part in reference.split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if name in _VALUES:
            return None
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and len(name) < 9 and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def _check_size(found: _Found) -> None:
    levels = _levels(found.root) + sum(map(_levels, found.targets.values())) + _NAMED_LEVELS * len(found.named)
    if levels > MAX_LEVELS:
        count = len(found.targets) + len(found.named)
        raise SettingsError(
            f"the JSON schema and what its {count} $refs lead to nest {levels:,} deep altogether, expected "
            f"at most {MAX_LEVELS:,}; make it smaller"
        )
    multiple = 1
    for one in found.schemas:
        if "prefixItems" in one and isinstance(one.get("items"), list):
            raise SettingsError("the JSON schema has prefixItems beside a list of items, expected one of them")
        for key in ("properties", "required", "patternProperties"):
            names = one.get(key)
            if isinstance(names, list | dict) and len(names) > MAX_NAMES:
                raise SettingsError(
                    f"the JSON schema has {len(names):,} {key} of one object, expected at most {MAX_NAMES:,}"
                )
        if (values := _values([one.get("const")]) + _values(one.get("enum"))) > MAX_VALUES:
            raise SettingsError(
                f"const and enum of the JSON schema hold {values:,} values in lists and objects, expected at most "
                f"{MAX_VALUES:,}"
            )
        multiple = math.lcm(multiple, _counted(one.get("multipleOf")))
        if multiple > MAX_MULTIPLE:
            raise SettingsError(
                f"multipleOf is {shown(one.get('multipleOf'))} in the JSON schema, and all of them together repeat "
                f"after more than {MAX_MULTIPLE:,} steps, which takes gigabytes to follow; leave it out and check the "
                "answer"
            )


def _levels(value: object) -> int:
    """Return how deeply lists and objects are nested."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def _values(value: object) -> int:
    """Return how many values are in the lists and objects of an enumeration; plain ones cost nothing."""
    waiting = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict | list)]
    count = 0
    while waiting:
        item = waiting.pop()
        inner = list(item.values()) if isinstance(item, dict) else item
        count += 1 + len(inner)
        waiting += [one for one in inner if isinstance(one, dict | list)]
    return count


def _counted(multiple: object) -> int:
    """Return how many states the library needs for a multipleOf: the number without its decimal point."""
    if isinstance(multiple, bool) or not isinstance(multiple, int | float) or multiple <= 0:
        return 1
    number = Decimal(str(multiple)).normalize()
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int), "JSON has no NaN"
    if number.adjusted() > 20 or exponent < -40:
        return MAX_MULTIPLE + 1
    return int(number.scaleb(-min(exponent, 0)))


def _leave_out(schema: Schema, knows_format: Callable[[str], bool]) -> None:
    """Remove keywords that require nothing, but would make the library refuse the schema."""
    for key in list(schema):
        value = schema[key]
        if key == "format":
            nothing = isinstance(value, str) and not knows_format(value)
        elif key == "uniqueItems":
            most = schema.get("maxItems")
            nothing = value is False or (value is True and type(most) is int and most < 2)
        elif key in ("unevaluatedItems", "unevaluatedProperties", "contentSchema"):
            nothing = value is True or value == {}
        elif key == "propertyNames":
            nothing = value is True or value in ({}, {"type": "string"})
        elif key in ("dependentRequired", "dependentSchemas", "dependencies"):
            nothing = value == {}
        elif key == "if":
            nothing = "then" not in schema and "else" not in schema
        elif key in ("then", "else"):
            nothing = "if" not in schema
        elif key in ("minContains", "maxContains"):
            nothing = "contains" not in schema
        else:
            nothing = key == "minProperties" and value == 0 and value is not False
        if nothing:
            del schema[key]


def _narrow(schema: Schema) -> None:
    """Narrow bounds of 64-bit integers, as code generators write them, to the last ones that the library can hold."""
    if schema.get("type") != "integer":
        return
    for key, sign in (("minimum", -1), ("maximum", 1)):
        value = schema.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 2**63 - 1 <= value * sign <= 2**64:
            schema[key] = sign * _LARGEST_INT


def _endless(found: _Found) -> str | None:
    """Return a $ref whose schema no finite value satisfies, because it requires itself; None if there is none.

    Each sweep finds more schemas that have an end; those that are left when none is found have no end.
    """
    ended: set[int] = set()

    def ends(value: object) -> bool:
        return not isinstance(value, dict) or id(value) in ended

    def has_end(schema: Schema) -> bool:
        target = found.target(schema)
        if target is not None and not ends(target):
            return False
        if not all(ends(part) for part in _list(schema.get("allOf"))):
            return False
        for key in ("anyOf", "oneOf"):
            if (parts := _list(schema.get(key))) and not any(ends(part) for part in parts):
                return False
        kinds = schema.get("type")
        return any(_kind_ends(schema, kind, ends) for kind in (kinds if isinstance(kinds, list) and kinds else [kinds]))

    for _ in range(_SWEEPS):
        new = [one for one in reversed(found.schemas) if id(one) not in ended and has_end(one)]
        if not new:
            return next((name for name, target in found.targets.items() if id(target) not in ended), None)
        ended.update(map(id, new))
    return None  # the chain is too long to tell


def _kind_ends(schema: Schema, kind: object, ends: Callable[[object], bool]) -> bool:
    """Whether there is a finite value of one type."""
    if kind == "object":
        properties, required = schema.get("properties"), _list(schema.get("required"))
        if not isinstance(properties, Mapping):
            return True
        return all(ends(properties.get(name)) for name in required if isinstance(name, str))
    if kind == "array":
        least, first, items = schema.get("minItems"), _list(schema.get("prefixItems")), schema.get("items")
        if not isinstance(least, int) or isinstance(items, list):
            return True
        return all(map(ends, first[:least])) and (least <= len(first) or ends(items))
    return True


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
