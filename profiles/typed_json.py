"""Records from JSON that somebody may have altered: every field is present, known, and of its type.

In: parsed JSON, and a dataclass whose annotations are plain. Out: values for its fields. Knows nothing about what they
mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType
from typing import Any

from edge.runtime.errors import EdgeError, shown

_LARGEST = 2**63 - 1
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # characters that a terminal would obey
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "int | None": (int, NoneType),
    "float | None": (int, float, NoneType),
}
_LISTS = {"tuple[int, ...]": "int", "tuple[float, ...]": "float", "tuple[str, ...]": "str"}


def read_fields(
    cls: type[Any],  # a dataclass
    data: object,
    what: str,
    error: type[EdgeError],
    advice: str,
    *,
    elsewhere: frozenset[str] = frozenset(),
) -> dict[str, Any]:  # Any: each of its field's type
    """Values by field; those of the fields `elsewhere` are not checked. Raises `error`: "`what` ...; `advice`"."""
    if not isinstance(data, dict):
        raise error(f"{what} is {shown(data)}, expected an object; {advice}")
    known = {field.name: str(field.type) for field in fields(cls)}
    if wrong := sorted(set(data) ^ set(known)):
        name = shown(wrong[0])
        raise error(f"{what} {f'has no {name}' if wrong[0] in known else f'has an unknown {name}'}; {advice}")
    return {
        name: value if name in elsewhere else read_value(value, known[name], f"{name} of {what}", error, advice)
        for name, value in data.items()
    }


def read_value(value: object, kind: str, what: str, error: type[EdgeError], advice: str) -> Any:  # Any: as `kind` says
    """A value checked against an annotation like "int | None" or "tuple[float, ...]". Raises `error`."""
    if (inner := _LISTS.get(kind)) is not None:
        if not isinstance(value, list | tuple):
            raise error(f"{what} is {shown(value)}, expected a list; {advice}")
        return tuple([read_value(item, inner, what, error, advice) for item in value])
    fits = isinstance(value, _TYPES[kind]) and not isinstance(value, bool)
    if not fits or (isinstance(value, int) and abs(value) > _LARGEST):
        raise error(f"{what} is {shown(value)}, expected {kind}; {advice}")
    if isinstance(value, str) and _CONTROL.search(value):
        raise error(f"{what} is {shown(value)}, expected text without control characters; {advice}")
    return value


def read_texts(data: object, what: str, error: type[EdgeError], advice: str) -> Mapping[str, str]:
    """An object whose values are all text. Raises `error`."""
    if not isinstance(data, dict):
        raise error(f"{what} is {shown(data)}, expected an object; {advice}")
    return {
        name: read_value(value, "str", f"{shown(name)[1:-1]} of {what}", error, advice) for name, value in data.items()
    }
