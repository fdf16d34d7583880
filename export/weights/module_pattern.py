"""Untrusted regular expressions over names of modules, matched in a time that the pattern cannot choose.

In: a pattern as PEFT's rank_pattern has it, and a name. Out: whether it matches the name to its end, from its beginning
or from after a dot. Knows nothing about adapters.

Python's own `re` goes back and tries again, for hours with a pattern made for that: "(.*)*x". Here all places where
a match may be are followed at once (Thompson 1968). The syntax is Python's without what that cannot do and names of
modules do not need: look-around, references to groups, flags, possessive repeats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

MAX_CHARACTERS = 1000  # of a pattern
MAX_STEPS = 1000  # of what it becomes, repeats written out
MAX_DEPTH = 50  # of groups
_KEPT = 10_000  # transitions that are remembered

_BOUNDS = re.compile(r"\{(\d{0,9})(,?)(\d{0,9})\}")


@dataclass(frozen=True, slots=True)
class _One:
    takes: Callable[[str], object]  # whether a character will do


@dataclass(frozen=True, slots=True)
class _All:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Either:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Many:
    part: _Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class _Edge:
    kind: Literal["begin", "end"]


_Node = _One | _All | _Either | _Many | _Edge


@dataclass(frozen=True, slots=True)
class _Step:
    """What has to come, and where the match continues."""

    kind: Literal["one", "fork", "begin", "end", "match"]
    to: tuple[int, ...] = ()
    takes: Callable[[str], object] | None = None  # of "one"


class ModulePattern:
    """A pattern. Raises ValueError, in words, for what is not a pattern, too large, or beyond the syntax."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_CHARACTERS:
            raise ValueError(f"it has {len(pattern):,} characters, expected at most {MAX_CHARACTERS:,}")
        behind_a_dot = _All((_Many(_One(lambda _char: True), 0, None), _One(lambda char: char == ".")))
        whole = _All((_Either((_All(()), behind_a_dot)), _Parser(pattern).parse()))
        self._steps: list[_Step] = []
        self._first = self._build(whole, self._add(_Step("match")))
        self._known: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def matches(self, name: str) -> bool:
        """Whether a name, or a part of it from after a dot to its end, matches."""
        places = self._reach({self._first}, begin=True)
        for char in name:
            after = self._known.get((places, char))
            if after is None:
                taken = [self._steps[place] for place in places]
                after = self._reach({step.to[0] for step in taken if step.takes is not None and step.takes(char)})
                if len(self._known) < _KEPT:
                    self._known[places, char] = after
            places = after
        at_end = self._reach(places, begin=not name, end=True)
        return any(self._steps[place].kind == "match" for place in at_end)

    def _reach(self, places: Iterable[int], *, begin: bool = False, end: bool = False) -> frozenset[int]:
        """The places, and those that are reached from them without a character."""
        found = set(places)
        waiting = list(found)
        while waiting:
            step = self._steps[waiting.pop()]
            if step.kind == "fork" or (step.kind == "begin" and begin) or (step.kind == "end" and end):
                new = set(step.to) - found
                found |= new
                waiting += new
        return frozenset(found)

    def _add(self, step: _Step) -> int:
        if len(self._steps) >= MAX_STEPS:
            raise ValueError(f"with its repeats written out it has more than {MAX_STEPS:,} parts")
        self._steps.append(step)
        return len(self._steps) - 1

    def _build(self, node: _Node, then: int) -> int:
        """Add the steps of a part after which the match continues at `then`; returns where they begin."""
        match node:
            case _One(takes):
                return self._add(_Step("one", (then,), takes))
            case _Edge(kind):
                return self._add(_Step(kind, (then,)))
            case _All(parts):
                for part in reversed(parts):
                    then = self._build(part, then)
                return then
            case _Either(parts):
                return self._add(_Step("fork", tuple([self._build(part, then) for part in parts])))
            case _Many(part, least, most):
                end = then
                if most is None:
                    loop = self._add(_Step("fork"))
                    self._steps[loop] = _Step("fork", (self._build(part, loop), end))
                    then = loop
                for _ in range(0 if most is None else most - least):
                    then = self._add(_Step("fork", (self._build(part, then), end)))
                for _ in range(least):  # a step each, so that repeats of nothing end too
                    then = self._add(_Step("fork", (self._build(part, then),)))
                return then


class _Parser:
    """Reads a pattern from left to right."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0

    def parse(self) -> _Node:
        found = self._either(0)
        if self._at < len(self._text):
            raise ValueError("it has a ) without a (")
        return found

    def _either(self, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            raise ValueError(f"its groups nest more than {MAX_DEPTH} deep")
        options = [self._all(depth)]
        while self._text.startswith("|", self._at):
            self._at += 1
            options.append(self._all(depth))
        return options[0] if len(options) == 1 else _Either(tuple(options))

    def _all(self, depth: int) -> _Node:
        parts: list[_Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._repeated(self._one(depth)))
        return _All(tuple(parts))

    def _repeated(self, node: _Node) -> _Node:
        if (bounds := self._bounds()) is None:
            return node
        if isinstance(node, _Edge):
            raise ValueError("it repeats an edge")
        if self._text.startswith("?", self._at):  # as few as possible: the same where the end is given
            self._at += 1
        elif self._text.startswith("+", self._at):
            raise ValueError("it has a possessive repeat, which is not supported")
        if self._bounds() is not None:
            raise ValueError("it repeats a repeat")
        least, most = bounds
        if most is not None and most < least:
            raise ValueError("it has a repeat whose bounds are the wrong way round")
        return _Many(node, least, most)

    def _bounds(self) -> tuple[int, int | None] | None:
        """How often the part before is repeated, if it is."""
        char = self._text[self._at : self._at + 1]
        if char and char in "*+?":
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        found = _BOUNDS.match(self._text, self._at)
        if found is None or found[0] == "{}":  # then it is text
            return None
        self._at = found.end()
        least = int(found[1] or 0)
        return least, least if not found[2] else int(found[3]) if found[3] else None

    def _bounds_at(self, begin: int) -> bool:
        """Whether there is a repeat at `begin`."""
        self._at = begin
        found = self._bounds() is not None
        self._at = begin + 1
        return found

    def _one(self, depth: int) -> _Node:
        text, begin = self._text, self._at
        char = text[begin]
        self._at += 1
        match char:
            case "(":
                return self._group(depth)
            case "[":
                return self._class(begin)
            case "^" | "$":
                return _Edge("begin" if char == "^" else "end")
            case "*" | "+" | "?" | "{" if self._bounds_at(begin):
                raise ValueError(f"it has nothing to repeat before {char!r}")
            case "\\":
                return self._escape()
            case _:
                return _One((lambda other: other != "\n") if char == "." else (lambda other: other == char))

    def _group(self, depth: int) -> _Node:
        if self._text.startswith("?", self._at):
            opened = re.compile(r"\?(:|P<\w+>)").match(self._text, self._at)
            if opened is None:
                raise ValueError(f"it has {self._text[self._at - 1 : self._at + 3]!r}, which is not supported")
            self._at = opened.end()
        found = self._either(depth + 1)
        if not self._text.startswith(")", self._at):
            raise ValueError("it has a ( without a )")
        self._at += 1
        return found

    def _class(self, begin: int) -> _Node:
        at = begin + 1 + self._text.startswith("^", begin + 1)
        at += self._text.startswith("]", at)
        while self._text[at : at + 1] not in ("]", ""):
            at += 2 if self._text[at] == "\\" else 1
        self._at = at + 1
        return self._by_library(self._text[begin : self._at])

    def _escape(self) -> _Node:
        char = self._text[self._at : self._at + 1]
        self._at += 1
        if char in ("A", "Z"):
            return _Edge("begin" if char == "A" else "end")
        if char and char in "dDwWsS":
            return self._by_library(f"\\{char}")
        if not char or char.isalnum():
            raise ValueError(f"it has '\\{char}', which is not supported")
        return _One(lambda other: other == char)

    @staticmethod
    def _by_library(one: str) -> _Node:
        """What matches a single character, which takes no time whatever the pattern."""
        try:
            return _One(re.compile(one).fullmatch)
        except re.error as error:
            raise ValueError(str(error)) from error
