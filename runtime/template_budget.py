"""What rendering one template may cost: a number of units, of which each operation takes some.

In: values, and operations on them before they are done. Out: nothing, or TooMuchError. Knows nothing about syntax.

A unit is at most about a microsecond: one value read, or 32 characters. No clock is involved, so a template that
renders here renders anywhere. Units bound memory, too, since making a value takes as many as its size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set, Sized, ValuesView
from itertools import chain
from typing import Any, TypeVar

from jinja2.runtime import LoopContext
from jinja2.utils import Namespace

T = TypeVar("T")

BASE_UNITS = 1_000_000  # for any messages; the largest published templates take a few thousand
UNITS_PER_INPUT = 64  # in addition, for every unit of the values given
CHARS_PER_UNIT = 32
_MOST_BITS = 20_000  # of an integer in arithmetic
_MOST_DIGITS = 100  # to round a number to
_DEEPEST = 500  # nested lists; Python's own functions overflow at about a thousand

# Methods of values that no chat template needs, and whose work does not follow from the sizes of their arguments.
_REFUSED_METHODS = frozenset(
    ("encode", "decode", "translate", "maketrans", "expandtabs", "to_bytes", "from_bytes", "fromkeys", "striptags")
)
_VALUES = (str, bytes, int, float, list, tuple, dict, set, frozenset, range)


class TooMuchError(RuntimeError):
    """A template does more than it may."""


class Budget:
    """The units that are left for one rendering."""

    def __init__(self, units: int) -> None:
        self.left = units

    def spend(self, units: int) -> None:
        """Take units. Raises TooMuchError if fewer are left."""
        self.left -= units
        if self.left < 0:
            raise TooMuchError("it computes or writes more than a template may; it may have a loop without end")

    def touch(self, value: object) -> None:
        """Take the size of a value, without its content."""
        self.spend(outer_units(value))

    def weigh(self, value: object) -> int:
        """Take the size of a value and of all its content, counted as often as it occurs; return that size."""
        before = left = self.left
        waiting: list[Iterator[Any]] = [iter((value,))]
        while waiting and left >= 0:
            for item in waiting[-1]:
                left -= 1
                if isinstance(item, str | bytes):
                    left -= len(item) // CHARS_PER_UNIT
                elif isinstance(item, int):
                    left -= item.bit_length() // 64
                elif (inside := _items(item)) is not None:
                    waiting.append(inside)
                    break
            else:
                waiting.pop()
            if len(waiting) > _DEEPEST:
                raise TooMuchError(f"its values nest more than {_DEEPEST} deep")
        self.left = left
        self.spend(0)
        return before - left

    def counted(self, value: T) -> T:
        """Return the value; an iterator becomes one that takes a unit for every item."""
        if not isinstance(value, Iterator) or isinstance(value, LoopContext):
            return value
        return self._count(value)  # type: ignore[return-value]  # an iterator for an iterator

    def _count(self, items: Iterator[T]) -> Iterator[T]:
        for item in items:
            self.spend(1)
            yield item

    def check_operator(self, operator: str, left: object, right: object) -> None:
        """Take the cost of an arithmetic operator before it is applied."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MOST_BITS:
                raise TooMuchError(f"its numbers have more than {_MOST_BITS:,} bits")
        elif operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | bytes | list | tuple) and isinstance(times, int):
                    self.spend(len(sequence) * max(times, 0) // (CHARS_PER_UNIT // 8) + 1)
        elif operator == "%" and isinstance(left, str | bytes):
            self.check_format(str(left), "%", [right])
        else:
            self.touch(left)
            self.touch(right)

    def check_method(self, owner: object, name: str, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        """Take the cost of a value's method before it is called."""
        if not isinstance(owner, _VALUES):
            return
        if name in _REFUSED_METHODS:
            raise TooMuchError(f"it calls {name} of a value, which chat templates may not")
        if name in ("format", "format_map") and isinstance(owner, str):
            self.check_format(owner, "{", [*args, *kwargs.values()])
        self.check_growth(name, [owner, *args], kwargs)
        if isinstance(owner, str | bytes):
            self.touch(owner)
        elif name in ("index", "count"):
            self.weigh(owner)

    def check_growth(self, name: str, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        """Take the cost of a method or filter whose result may be larger than all its arguments."""
        others = [*args[1:], *kwargs.values()]
        widest = max((abs(n) for n in others if isinstance(n, int)), default=0)
        texts = [text for text in others if isinstance(text, str | bytes)]
        longest = max(map(len, texts), default=0)
        text = args[0] if isinstance(args[0], str | bytes) else ""
        match name:
            case "center" | "ljust" | "rjust" | "zfill" | "batch" | "slice":
                self.spend(widest // 4)  # a list may be filled up with values of 8 bytes
            case "indent":
                lines = 1 + (text.count("\n") if isinstance(text, str) else 0)
                self.spend(lines * max(widest, longest) // CHARS_PER_UNIT)
            case "round" if widest > _MOST_DIGITS:
                raise TooMuchError(f"it rounds to more than {_MOST_DIGITS} digits")
            case "replace" if len(texts) > 1:
                old, new = texts[:2]
                found = text.count(old) if isinstance(text, str) and isinstance(old, str) else len(text)
                self.spend(found * len(new) // CHARS_PER_UNIT)
            case "join":
                parts = [len(part) for part in (*args[:2], *texts) if isinstance(part, Sized)]
                self.spend(parts[0] * max(parts[1:], default=0) // CHARS_PER_UNIT if parts else 0)
            case "strip" | "lstrip" | "rstrip" | "trim":
                self.spend(len(text) * longest // CHARS_PER_UNIT)
            case _:
                pass

    def check_format(self, pattern: str, sign: str, values: Sequence[object]) -> None:
        """Take the cost of filling values into a pattern with places for them: `%` or `{`."""
        places = pattern.count(sign)
        size = sum(self.weigh(value) for value in values)
        numbers = [abs(n) for value in values for n in _numbers(value)]
        widths = sum(int(digits[:12]) for digits in re.findall(r"\d+", pattern))
        if "*" in pattern or re.search(r"\{[^{}]*\{", pattern):
            widths += places * max(numbers, default=0)
        self.spend(places * size + widths // CHARS_PER_UNIT)


def outer_units(value: object) -> int:
    """Return the size of a value without its content, in units."""
    if isinstance(value, str | bytes):
        return 1 + len(value) // CHARS_PER_UNIT
    if isinstance(value, int):
        return 1 + value.bit_length() // 64
    if isinstance(value, list | tuple | dict | set | frozenset | range):
        return 1 + len(value) // 4
    return 1


def total_units(value: object) -> int:
    """Return the size of a value of JSON and all its content, in units."""
    unlimited = Budget(1 << 62)
    return unlimited.weigh(value)


def _items(value: object) -> Iterator[Any] | None:
    """Return the content of a container, or None for other values."""
    if isinstance(value, list | tuple):
        return iter(value)
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")
    if isinstance(value, Mapping):
        return chain(value.keys(), value.values())
    return iter(value) if isinstance(value, Set | ValuesView | range) else None


def _numbers(value: object) -> list[int]:
    if isinstance(value, int):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [item for item in inside if isinstance(item, int)]
