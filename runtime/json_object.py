"""A JSON object read field by field: each has one type and bounds, or there is one clear error.

In: a value from `json_reader`, its path, and the error that its reader raises. Out: the fields. Knows nothing about
what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from edge.runtime.errors import EdgeError, shown
from edge.runtime.rules import Flag, Number, Refusal, Rule, Whole
from edge.runtime.terminal_text import MAX_LINE, is_line

T = TypeVar("T")


class ObjectReader:
    """The fields of one object. Every method raises the given error, with the advice at the end of its message.

    path: where the object is, like "manifest.json: spec".
    """

    def __init__(self, value: object, path: str, error: type[EdgeError], advice: str) -> None:
        self._path, self._error, self._advice = path, error, advice
        if not isinstance(value, dict):
            raise error(f"{path} is {shown(value)}, expected a JSON object; {advice}")
        self._values: dict[str, Any] = value

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def has_only(self, names: set[str]) -> None:
        """Refuse an object with any field not in `names`."""
        if unknown := set(self._values) - names:
            self._refuse(f"has the field {shown(min(unknown))}, which is unknown")

    def value(self, name: str) -> Any:  # Any: a value of JSON
        """Return the value of a field, unchecked."""
        if name not in self._values:
            self._refuse(f"has no field {shown(name)}")
        return self._values[name]

    def whole(self, name: str, low: int = 0, high: int = 2**62) -> int:
        """Return a whole number within bounds."""
        number: int = self._take(name, Whole(low, high))
        return number

    def number(self, name: str, low: float = -1e300, high: float = 1e300) -> float:
        """Return a finite number within bounds."""
        number: float = self._take(name, Number(low, high, words=f"a number from {low:g} to {high:g}"))
        return number

    def flag(self, name: str) -> bool:
        """Return true or false."""
        flag: bool = self._take(name, Flag())
        return flag

    def word(self, name: str, pattern: str = ".*", expected: str = f"at most {MAX_LINE} characters on one line") -> str:
        """Return text on one line, as programs write it; with a pattern, text that matches it as a whole."""
        value = self.value(name)
        if not is_line(value) or re.fullmatch(pattern, value) is None:
            self._refuse(f"{name} is {shown(value)}, expected {expected}", ".")
        return str(value)

    def text(self, name: str) -> str:
        """Return any text, as people and other programs write it."""
        value = self.value(name)
        if not isinstance(value, str):
            self._refuse(f"{name} is {shown(value)}, expected a text", ".")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of such texts."""
        values = self._list(name)
        if wrong := [value for value in values if not isinstance(value, str)]:
            self._refuse(f"{name} holds {shown(wrong[0])}, expected texts", ".")
        return tuple(values)

    def wholes(self, name: str, low: int, high: int) -> tuple[int, ...]:
        """Return a list of whole numbers within bounds."""
        rule = Whole(low, high)
        try:
            return tuple(rule.take(value) for value in self._list(name))
        except Refusal:
            self._refuse(f"{name} is {shown(self._values[name])}, expected a list, each {rule.expected}", ".")

    def numbers(self, name: str, low: float, high: float) -> tuple[float, ...]:
        """Return a list of finite numbers within bounds."""
        rule = Number(low, high, words=f"a number from {low:g} to {high:g}")
        try:
            return tuple(rule.take(value) for value in self._list(name))
        except Refusal:
            self._refuse(f"{name} is {shown(self._values[name])}, expected a list, each {rule.expected}", ".")

    def inside(self, name: str) -> ObjectReader:
        """Return a reader for the object in a field."""
        return ObjectReader(self.value(name), f"{self._path}.{name}", self._error, self._advice)

    def listed(self, name: str, read: Callable[[ObjectReader], T]) -> tuple[T, ...]:
        """Return a list of objects, each converted by `read`."""
        place = f"{self._path}.{name}"
        return tuple(
            read(ObjectReader(value, f"{place}[{index}]", self._error, self._advice))
            for index, value in enumerate(self._list(name))
        )

    def named(self, name: str, read: Callable[[ObjectReader], T]) -> dict[str, T]:
        """Return an object of objects, each converted by `read`. Its keys are texts on one line."""
        found = self.inside(name)
        return {key: read(found.inside(key)) for key in found.names()}

    def words(self, name: str) -> dict[str, str]:
        """Return an object of texts on one line."""
        found = self.inside(name)
        return {key: found.word(key) for key in found.names()}

    def names(self) -> Iterator[str]:
        """Yield the names of the fields, each a non-empty text on one line."""
        for key in self._values:
            if not key or not is_line(key):
                self._refuse(f"has the key {shown(key)}, expected a name on one line")
            yield key

    def _take(self, name: str, rule: Rule) -> Any:  # Any: what the rule makes of it
        try:
            return rule.take(self.value(name))
        except Refusal:
            self._refuse(f"{name} is {shown(self._values[name])}, expected {rule.expected}", ".")

    def _list(self, name: str) -> list[Any]:  # Any: values of JSON
        value = self.value(name)
        if not isinstance(value, list):
            self._refuse(f"{name} is {shown(value)}, expected a list", ".")
        return list(value)

    def _refuse(self, problem: str, joint: str = " ") -> NoReturn:
        raise self._error(f"{self._path}{joint}{problem}; {self._advice}") from None
