"""Which special tokens of a prompt the template wrote, and which are only spelled in somebody's text.

In: the texts of a tokenizer's special tokens; then the strings that go into a template, and what it rendered of them.
Out: `MarkedText`. Knows nothing about token ids or templates.

A template pastes its own `<|user|>` and what a user typed into one string. To tell them apart afterwards, `guard` puts
a character that means nothing into every special token that a string spells, and also where the string begins or ends
like one, so that it cannot be completed by what stands beside it. What is a special token in the rendered text is then
the template's own. (A template that writes a tag around a string, like `<|{{ name }}|>`, means to make a token of it.)

`MarkedText` is the result in a form that does not depend on where strings began and ended, so that one text begins like
another exactly if their tokens do: MARK on both sides of each special token, and text as it is with MARK doubled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import pairwise
from typing import Any, NewType

MarkedText = NewType("MarkedText", str)

# Private-use characters. Text may hold them: they are escaped where they stand in it.
GUARD = "\U0010fff0"  # may stand anywhere in guarded text, and means nothing
ESCAPE = "\U0010fff1"  # with the next character, stands for one that could not be there itself
MARK = "\U0010fff2"  # on both sides of a special token of marked text
_STAND_IN = 0x10FF00  # the first of the characters that follow ESCAPE

_MARKED = re.compile(f"{MARK}([^{MARK}]*){MARK}")


class Markup:
    """The special tokens that text is searched for.

    others: further tokens that a tokenizer recognises before all else and that are part of the text; where one of them
    overlaps a special token, the one that begins first wins, then the longer.
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
        """Text in pieces, none of them empty: each special token, and what lies between; True for special tokens."""
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
        """Where to cut a text so that no special token is in it, and none can come about at its ends."""
        found = {match.start() + 1 for match in self._starts.finditer(text)}
        for length in range(1, min(self._reach, len(text) + 1)):
            if text[-length:] in self._prefixes:
                found.add(len(text) - length + 1)
            if text[:length] in self._suffixes:
                found.add(0)
        return sorted(found)

    def guard(self, text: str) -> str:
        """Text that stays text in a template."""
        bounds = [0, *self.seams(text), len(text)]
        pieces = (text[a:b].translate(self._escapes) for a, b in pairwise(bounds))
        return GUARD.join(pieces)

    def unguard(self, text: str) -> str:
        """The inverse of `guard`, also for a part of a guarded text and for several joined."""
        if GUARD not in text and ESCAPE not in text:
            return text
        return re.sub(f"{GUARD}|{ESCAPE}(.?)", lambda m: self._originals.get(m[1] or "", m[1] or ""), text, flags=re.S)

    def guard_value(self, value: Any) -> Any:  # JSON, of the same shape
        """A value of JSON with all its strings guarded, keys too."""
        return _map_strings(value, self.guard)

    def unguard_value(self, value: Any) -> Any:  # JSON, of the same shape
        """The inverse of `guard_value`."""
        return _map_strings(value, self.unguard)

    def mark(self, rendered: str) -> MarkedText:
        """What a template rendered of guarded strings, its own special tokens marked."""
        pieces = self.split(rendered)
        return MarkedText("".join(mark_token(p) if special else mark_text(self.unguard(p)) for p, special in pieces))


def mark_text(text: str) -> MarkedText:
    """Marked text without special tokens."""
    return MarkedText(text.replace(MARK, MARK + MARK))


def mark_token(token: str) -> MarkedText:
    """Marked text of one special token."""
    return MarkedText(f"{MARK}{token}{MARK}")


def plain_text(marked: MarkedText) -> str:
    """Marked text as one reads it."""
    return _MARKED.sub(lambda found: found[1] or MARK, marked)


def split_marked(marked: MarkedText) -> Iterator[tuple[str, bool]]:
    """Pieces of a marked text, none of them empty: special tokens (True), and all the text between two of them."""
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
    """Finds the leftmost of the tokens, and of several that begin there the longest."""
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
