"""Typed reads of a checkpoint's configuration.

In: a JSON object or GGUF metadata. Out: values of the expected type, or a ConfigError that names the key. Knows nothing
about what the keys mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from edge.runtime.errors import ConfigError

T = TypeVar("T", int, float, str, bool)


class Fields:
    """A configuration with typed reads. A key may be a path ("rope_parameters.rope_theta") and have later places."""

    def __init__(self, values: Mapping[str, object], origin: str) -> None:
        self.values = values
        self.origin = origin

    def read(self, kind: type[T], *keys: str, default: T | None = None) -> T:
        """The first of `keys` that is there, as `kind`. Raises ConfigError when none is and there is no default."""
        for key in keys:
            value = self.find(key)
            if value is None:
                continue
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise ConfigError(f"{self.origin}: {key} is {value!r}, expected {kind.__name__}")
            return value
        if default is None:
            raise ConfigError(f"{self.origin}: {' or '.join(keys)} is missing; expected {kind.__name__}")
        return default

    def positive(self, *keys: str, default: int | None = None) -> int:
        """Like `read(int, ...)`; raises ConfigError below 1."""
        value = self.read(int, *keys, default=default)
        if value < 1:
            raise ConfigError(f"{self.origin}: {keys[0]} is {value}, expected 1 or more")
        return value

    def require(self, key: str, *allowed: object) -> None:
        """Raises ConfigError when a key is there with another value than those we implement."""
        value = self.find(key)
        if value is not None and value not in allowed:
            raise ConfigError(
                f"{self.origin}: {key} is {value!r}, supported: {', '.join(map(repr, allowed)) or 'none'}; "
                "this checkpoint computes something that edgeglm does not implement"
            )

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids given as one number or a list; empty where the key is missing."""
        value = self.find(key)
        given = [] if value is None else value if isinstance(value, list) else [value]
        ids = tuple(i for i in given if isinstance(i, int) and not isinstance(i, bool) and i >= 0)
        if len(ids) < len(given):
            raise ConfigError(f"{self.origin}: {key} is {value!r}, expected token ids")
        return ids

    def find(self, key: str) -> object:
        """The raw value of a key, or None."""
        if key in self.values:  # GGUF keys hold dots
            return self.values[key]
        value: object = self.values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value
