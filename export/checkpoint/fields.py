"""Typed reads of a checkpoint's configuration.

In: a JSON object or GGUF metadata. Out: values of the expected type and of a size that later stages can handle; or a
ConfigError that names the key. Knows nothing about what the keys mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from edge.runtime.errors import ConfigError, shown

LARGEST = 2**31 - 1  # of counts, widths and ids: graphs and engines have 32-bit integers for them
# What files write for no token: -1, or the unsigned integer that GGUF makes of it.
_NO_ID = (-1, 2**32 - 1)
_WORDS = {int: f"a whole number of at most {LARGEST}", float: "a finite number", str: "text", bool: "true or false"}

T = TypeVar("T", int, float, str, bool)


class Fields:
    """A configuration with typed reads. A key may be a path, like "rope_parameters.rope_theta"."""

    def __init__(self, values: Mapping[str, object], origin: str) -> None:
        self.values = values
        self.origin = origin

    def read(self, kind: type[T], *keys: str, default: T | None = None) -> T:
        """The first of `keys` that is present, as `kind`. Raises ConfigError when none is and no default is given."""
        for key in keys:
            if (found := self.find(key)) is None:
                continue
            value = float(found) if kind is float and type(found) is int and abs(found) < 2**63 else found
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)) or not _is_sane(value):
                raise ConfigError(f"{self.origin}: {key} is {shown(found)}, expected {_WORDS[kind]}")
            return value
        if default is None:
            raise ConfigError(f"{self.origin}: {' or '.join(keys)} is missing; expected {_WORDS[kind]}")
        return default

    def positive(self, *keys: str, default: int | None = None) -> int:
        """Like `read(int, ...)`; raises ConfigError below 1."""
        value = self.read(int, *keys, default=default)
        if value < 1:
            raise ConfigError(f"{self.origin}: {keys[0]} is {value}, expected 1 or more")
        return value

    def part(self, *keys: str, default: float) -> float:
        """Like `read(float, ...)`; raises ConfigError outside 0 to 1."""
        value = self.read(float, *keys, default=default)
        if not 0 <= value <= 1:
            raise ConfigError(f"{self.origin}: {' or '.join(keys)} is {value}, expected a share from 0 to 1")
        return value

    def require(self, key: str, *allowed: object) -> None:
        """Raises ConfigError when a key has a value other than those we implement."""
        value = self.find(key)
        if value is not None and value not in allowed:
            raise ConfigError(
                f"{self.origin}: {key} is {shown(value)}, supported: {', '.join(map(repr, allowed)) or 'none'}; "
                "this checkpoint computes something that edgeglm does not implement"
            )

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids given as one number or a list; empty where the key is missing or says "none"."""
        value = self.find(key)
        given = [] if value is None else value if isinstance(value, list) else [value]
        found = [i for i in given if not (type(i) is int and i in _NO_ID)]
        ids = tuple(i for i in found if type(i) is int and 0 <= i <= LARGEST)
        if len(ids) < len(found):
            raise ConfigError(f"{self.origin}: {key} is {shown(value)}, expected token ids, or -1 for none")
        return ids

    def within(self, key: str) -> Fields:
        """What an object in it says. Raises ConfigError where there is none."""
        value = self.find(key)
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self.origin}: {key} is {shown(value)}, expected an object")
        return Fields(value, f"{self.origin}, {key}")

    def find(self, key: str) -> object:
        """The raw value of a key, or None."""
        if key in self.values:  # GGUF keys contain dots
            return self.values[key]
        value: object = self.values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def _is_sane(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or abs(value) <= LARGEST
