"""Which special tokens of a prompt the template wrote, and which are only text that looks like them.

In: the texts of a tokenizer's special tokens; then the strings that go into a template, and what it rendered from them.
Out: `MarkedText`. Knows nothing about token ids or templates.

A template pastes its own `<|user|>` and what a user typed into one string. To tell them apart afterwards, `guard` puts
a meaningless character into every special token that a string spells, and also where the string begins or ends like
one, so that neighbouring text cannot complete it. Every special token in the rendered text is then the template's own.
(A template that writes a tag around a string, like `<|{{ name }}|>`, does mean a token.)

`MarkedText` is the result in a form that does not depend on where strings began and ended, so that one text begins like
another exactly if their tokens do: MARK on both sides of each special token, and unchanged text with MARK doubled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import pairwise
from typing import Any, NewType

MarkedText = NewType("MarkedText", str)

# Private-use characters. Text may hold them, and they are then escaped.
GUARD = "\U0010fff0"  # may be anywhere in guarded text, and means nothing
ESCAPE = "\U0010fff1"  # together with the next character, replaces one that must not occur itself
MARK = "\U0010fff2"  # on both sides of a special token of marked text
_STAND_IN = 0x10FF00  # the first character that can follow ESCAPE

_MARKED = re.compile(f"{MARK}([^{MARK}]*){MARK}")


class Markup:
    """The special tokens to find in text.

    others: further tokens that a tokenizer recognises first, but which are part of the text. If one of them overlaps a
    special token, the one that begins first wins, or else the longer.
    """

    def __init__(self, special: Collection[str] = (), others: Collection[str] = ()) -> None:
        self.special = frozenset(special)
        self._tokens = _any_of([*special, *others])
        self._starts = re.compile(f"(?={_any_of([token for token in special if len(token) > 1]).pattern})")
        self._prefixes = {token[:end] for token in special for end in range(1, len(token))}
        self._suffixes = {token[start:] for token in special for start in range(1, len(token))}
        self._reach = max(map(len, special), default=1)
        escaped = [GUARD, ESCAPE, *sorted(token for token in special if len(token) == 1)]
        self._escapes = {ord(char): f"{ESCAPE}{chr(_STAND_IN + i)}" for i, char in enumerate(escaped)}
        self._originals = {chr(_STAND_IN + i): char for i, char in enumerate(escaped)}

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield non-empty pieces of text: each special token (with True), and the text between them."""
        begin = 0
        for found in self._tokens.finditer(text):
            if found[0] not in self.special:
                continue
            if found.start() > begin:
                yield text[begin : found.start()], False
            yield found[0], True
            begin = found.end()
        if begin < len(text):
            yield text[begin:], False

    def seams(self, text: str) -> list[int]:
        """Return where to cut a text so that it holds no special token, and none can form at its ends."""
        found = {match.start() + 1 for match in self._starts.finditer(text)}
        for length in range(1, min(self._reach, len(text) + 1)):
            if text[-length:] in self._prefixes:
                found.add(len(text) - length + 1)
            if text[:length] in self._suffixes:
                found.add(0)
        return sorted(found)

    def guard(self, text: str) -> str:
        """Return text that stays text in a template."""
        bounds = [0, *self.seams(text), len(text)]
        pieces = (text[a:b].translate(self._escapes) for a, b in pairwise(bounds))
        return GUARD.join(pieces)

    def unguard(self, text: str) -> str:
        """Undo `guard`, also for a part of a guarded text, or for several joined."""
        if GUARD not in text and ESCAPE not in text:
            return text
        return re.sub(f"{GUARD}|{ESCAPE}(.?)", lambda m: self._originals.get(m[1] or "", m[1] or ""), text, flags=re.S)

    def guard_value(self, value: Any) -> Any:  # JSON, of the same shape
        """Return a value of JSON with all its strings guarded, including keys."""
        return _map_strings(value, self.guard)

    def unguard_value(self, value: Any) -> Any:  # JSON, of the same shape
        """Undo `guard_value`."""
        return _map_strings(value, self.unguard)

    def mark(self, rendered: str) -> MarkedText:
        """Mark the template's own special tokens in a text that it rendered from guarded strings."""
        pieces = self.split(rendered)
        return MarkedText("".join(mark_token(p) if special else mark_text(self.unguard(p)) for p, special in pieces))


def mark_text(text: str) -> MarkedText:
    """Return text without special tokens as marked text."""
    return MarkedText(text.replace(MARK, MARK + MARK))


def mark_token(token: str) -> MarkedText:
    """Return one special token as marked text."""
    return MarkedText(f"{MARK}{token}{MARK}")


def plain_text(marked: MarkedText) -> str:
    """Return marked text for reading."""
    return _MARKED.sub(lambda found: found[1] or MARK, marked)


def split_marked(marked: MarkedText) -> Iterator[tuple[str, bool]]:
    """Yield non-empty pieces of a marked text: special tokens (with True), and all the text between two of them."""
    text, begin = "", 0
    for found in _MARKED.finditer(marked):
        text += marked[begin : found.start()]
        begin = found.end()
        if not found[1]:
            text += MARK
            continue
        if text:
            yield text, False
        yield found[1], True
        text = ""
    if text := text + marked[begin:]:
        yield text, False


def _any_of(tokens: list[str]) -> re.Pattern[str]:
    """Return a pattern that finds the leftmost token; of several that begin there, the longest."""
    longest_first = sorted(set(tokens), key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_strings(key, change): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value
