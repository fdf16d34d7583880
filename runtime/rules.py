"""How a setting is checked: one way for every settings class, wherever the value comes from.

In: values from Python, a command line or JSON. Out: values as the settings keep them, or a SettingsError that names the
setting, what was given and what was expected. Knows nothing about a setting's purpose.

Only these values are converted:

    None          the setting's default: clients send null for settings that they do not use
    numpy scalar  the Python number
    5.0           5, where a whole number is expected
    5             5.0, where any number is expected
    "text"        ("text",), where texts are expected
    [1, 2]        (1, 2): settings can be hashed
    {"17": -1}    {17: -1}, where token ids are keys: JSON has only text as keys
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, Set
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from edge.runtime.errors import SettingsError, shown

_LARGEST = 2**63 - 1  # whole number that libraries and files can hold
_MAX_PATH = 32_766 if sys.platform == "win32" else 4095  # of a path, in the units of `_path_length`
_MAX_NAME = 255  # of each name in it
_RULE, _HELP = "rule", "help"  # keys of a field's metadata


class Refusal(ValueError):
    """A rule does not accept a value. Has a text of its own where "NAME is VALUE" does not say enough."""


class Rule(Protocol):
    """What one setting may be."""

    @property
    def expected(self) -> str:
        """The allowed values in words, to follow "expected"."""

    def take(self, value: object) -> object:
        """Return the value as it is kept. Raises Refusal."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number within bounds."""

    low: int = 0
    high: int | None = None

    @property
    def expected(self) -> str:
        if self.high is None:
            return f"a whole number, {self.low} or more"
        return f"a whole number from {self.low} to {self.high}"

    def take(self, value: object) -> int:
        number = _python(value)
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if isinstance(number, bool) or not isinstance(number, int):
            raise Refusal
        if number < self.low or (self.high is not None and number > self.high):
            raise Refusal
        if number > _LARGEST:
            raise Refusal("is too large")
        return number


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number within bounds; with `above`, the lower bound itself is excluded."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    note: str = ""
    words: str = ""  # replaces the description made from the bounds

    @property
    def expected(self) -> str:
        if self.words:
            return self.words
        if self.above:
            upper = "" if self.high == math.inf else f" and at most {self.high:g}"
            return f"a number above {self.low:g}{upper}{self.note}"
        if self.high == math.inf:
            return f"a number from {self.low:g} up{self.note}"
        return f"a number from {self.low:g} to {self.high:g}{self.note}"

    def take(self, value: object) -> float:
        number = _python(value)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise Refusal
        try:
            number = float(number)
        except OverflowError:  # an integer that no float can hold
            raise Refusal from None
        if not math.isfinite(number) or not self.low <= number <= self.high or (self.above and number == self.low):
            raise Refusal
        return number


@dataclass(frozen=True, slots=True)
class Flag:
    """True or False, but no value that merely counts as one of them."""

    expected: str = "true or false"

    def take(self, value: object) -> bool:
        flag = _python(value)
        if not isinstance(flag, bool):
            raise Refusal
        return flag


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is not empty: a name, or a few words."""

    expected: str = "a text that is not empty"
    longest: int | None = None  # characters

    def take(self, value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            raise Refusal
        if self.longest is not None and len(value) > self.longest:
            raise Refusal(f"is too long ({len(value):,} characters; at most {self.longest:,})")
        return value


@dataclass(frozen=True, slots=True)
class FilePath:
    """The path of a file or folder, which need not exist."""

    expected: str = "a path"

    def take(self, value: object) -> Path:
        try:
            name = os.fsencode(value)  # type: ignore[arg-type]  # it refuses anything but a path
        except (TypeError, UnicodeEncodeError):
            raise Refusal from None
        if not name or b"\0" in name or isinstance(value, bytes):  # Path makes "." of nothing
            raise Refusal
        path = Path(os.fsdecode(name))
        whole, longest = _path_length(os.fsdecode(name)), max(map(_path_length, (*path.parts, "")))
        if whole > _MAX_PATH or longest > _MAX_NAME:
            raise Refusal(
                f"is too long ({whole:,} bytes, {longest:,} in one name; at most {_MAX_PATH:,} and {_MAX_NAME})"
            )
        return path


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few names."""

    names: tuple[str, ...]

    @property
    def expected(self) -> str:
        return f"{', '.join(self.names[:-1])} or {self.names[-1]}"

    def take(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.names:
            raise Refusal
        return value


@dataclass(frozen=True, slots=True)
class Texts:
    """A text, or a list of texts; none of them empty."""

    expected: str = "a text, or a list of texts, none of them empty"

    def take(self, value: object) -> tuple[str, ...]:
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, list | tuple):
            raise Refusal
        for text in texts:
            if not isinstance(text, str) or not text:
                raise Refusal(f"holds {shown(text)}")
        return tuple(texts)


@dataclass(frozen=True, slots=True)
class Wholes:
    """A list of whole numbers, 0 or more."""

    expected: str = "a list of token ids, whole numbers, 0 or more"

    def take(self, value: object) -> tuple[int, ...]:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise Refusal
        return tuple(_item(Whole(), item) for item in value)


@dataclass(frozen=True, slots=True)
class Biases:
    """Numbers by token id, kept as sorted pairs: unlike a mapping, these can be hashed."""

    expected: str = "a mapping of token ids to numbers from -100 to 100"

    def take(self, value: object) -> tuple[tuple[int, float], ...]:
        pairs = list(value.items()) if isinstance(value, Mapping) else value
        if not isinstance(pairs, list | tuple):
            raise Refusal
        found: dict[int, float] = {}
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise Refusal(f"holds {shown(pair)}")
            key, number = pair
            if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20:
                key = int(key)
            token_id = _item(Whole(), key)
            if token_id in found:
                raise Refusal(f"names token id {token_id} twice")
            try:
                found[token_id] = Number(-100, 100).take(number)
            except Refusal:
                raise Refusal(f"of token id {token_id} is {shown(number)}") from None
        return tuple(sorted(found.items()))


@dataclass(frozen=True, slots=True)
class Instance:
    """An object of one class."""

    kind: type
    expected: str

    def take(self, value: object) -> object:
        if not isinstance(value, self.kind):
            raise Refusal
        return value


def setting(default: Any, rule: Rule, help: str) -> Any:  # Any: stands in for the type of the field
    """Return a field of a settings class: its default, its rule, and its purpose in words."""
    return field(default=default, metadata={_RULE: rule, _HELP: help})


@dataclass(frozen=True, slots=True)
class Settings:
    """Base of settings classes: converts and checks every field made by `setting`. Raises SettingsError."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            object.__setattr__(self, spec.name, check(spec, getattr(self, spec.name)))
        self.check_together()

    def check_together(self) -> None:
        """Check fields against each other. Raises SettingsError."""


def check(spec: Field[Any], value: object) -> object:  # Any: fields of every type
    """Return a value as a field keeps it. Raises SettingsError."""
    if value is None:
        return spec.default
    rule: Rule | None = spec.metadata.get(_RULE)
    return value if rule is None else check_value(spec.name, rule, value)


def check_value(name: str, rule: Rule, value: object) -> Any:  # Any: what the rule makes of it
    """Return a value as a rule keeps it; None is refused. Raises SettingsError."""
    try:
        return rule.take(value)
    except Refusal as refusal:
        given = str(refusal) or f"is {shown(value)}"
        raise SettingsError(f"{name} {given}, expected {rule.expected}", param=name) from None


def rule_of(spec: Field[Any]) -> Rule:  # Any: fields of every type
    """Return the rule of a field made by `setting`."""
    rule: Rule = spec.metadata[_RULE]
    return rule


def help_of(spec: Field[Any]) -> str:  # Any: fields of every type
    """Return the purpose of a field made by `setting`."""
    return str(spec.metadata[_HELP])


def refuse_unknown(names: Iterable[str], known: Set[str]) -> None:
    """Raise SettingsError, naming the closest match and all known names, if one of `names` is not known."""
    for name in sorted(set(names) - known):
        close = get_close_matches(name, known, 1)
        hint = f", did you mean {close[0]!r}? Known are" if close else ", known are"
        raise SettingsError(f"unknown setting {shown(name)}{hint} {', '.join(sorted(known))}", param=name)


def _path_length(text: str) -> int:
    """Return bytes on Linux; other systems count characters."""
    return len(os.fsencode(text)) if sys.platform == "linux" else len(text)


def _python(value: object) -> object:
    """Turn a numpy scalar into a Python number, without importing numpy: some commands do not need it."""
    numpy = sys.modules.get("numpy")
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value


def _item(rule: Whole, value: object) -> int:
    try:
        return rule.take(value)
    except Refusal:
        raise Refusal(f"holds {shown(value)}") from None
