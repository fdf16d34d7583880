"""Checks of a tokenizer.json before the tokenizers library reads it.

In: its text. Out: nothing, or a TokenizerError. Knows nothing about what its tokens are for.

The library trusts the file: a normalizer may turn one character into ten thousand, a table that it cannot read ends the
process, and an expression may take for ever on a text; none of this can be interrupted. So normalizers and expressions
are checked first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edge.runtime.errors import TokenizerError, shown
from edge.runtime.json_reader import parse_json

MAX_TOKEN = 1000  # characters of an added token
ADVICE = "use the tokenizer.json that the model was published with"
_MOST_GROWTH = 20  # characters that normalizers may turn one into; NFKC turns U+FDFA into 18
_MOST_ADDED = 1000  # characters that they may add to a text
_MOST_UNLIMITED = 2  # repetitions without an upper limit in one branch of an expression; published ones have 2
_MOST_VARIABLE = 8  # repetitions of any kind there
_LONGEST_EXPRESSION = 5000  # characters
# The most characters that a normalizer turns one into. Precompiled tables are for tokenizers that are not byte-level.
_GROWTH = {
    **dict.fromkeys(("Lowercase", "StripAccents", "Strip", "Nmt", "Prepend", "Sequence"), 1),
    **{"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "BertNormalizer": 4, "ByteLevel": 4},
}
# Signs of content that needs a closer look, found without parsing 20 MB of JSON twice.
_NORMALIZER = re.compile(r'"normalizer"\s*:\s*(?!\s|null\b|\d)')
_LONG_TOKEN = re.compile(rf'"content"\s*:\s*"[^"]{{{MAX_TOKEN}}}')
_HIDDEN_LETTER = re.compile(r"\\u00[4-7]")
_EXPRESSION = re.compile(r'"Regex"\s*:\s*("(?:[^"\\]|\\.)*")')
_REPEAT = re.compile(r"(?P<mark>[*+?]|\{\d*,?\d*\})[?+]?")
_OPTION = re.compile(r"\(\?[a-z-]+\)")
_PARTS = (
    re.compile(r"\\[pPx]\{[^}]*\}|\\.", re.S),
    re.compile(r"\(\?[a-z-]+\)|\((\?(<?[=!]|[a-z-]*:|>))?"),
    _REPEAT,
    re.compile(r".", re.S),
)


def check_tokenizer_json(text: str, name: str) -> None:
    """Raise TokenizerError for content that the library must not read. Whether it is a tokenizer, the library tells."""
    try:
        if any(sign.search(text) for sign in (_HIDDEN_LETTER, _NORMALIZER, _LONG_TOKEN)):
            data = parse_json(text, name, TokenizerError, ADVICE, unique_keys=True)
            _check_normalizer(data.get("normalizer") if isinstance(data, dict) else None)
            _check_added(data.get("added_tokens") if isinstance(data, dict) else None)
            expressions = list(_expressions(data))
        else:
            expressions = [json.loads(found) for found in _EXPRESSION.findall(text)]
        for expression in expressions:
            _check_expression(expression)
    except ValueError as error:
        raise TokenizerError(f"{name}: {error}; {ADVICE}") from error


def _check_added(value: object) -> None:
    """Raises ValueError."""
    for token in value if isinstance(value, list) else []:
        content = token.get("content") if isinstance(token, dict) else None
        if isinstance(content, str) and len(content) > MAX_TOKEN:
            raise ValueError(f"an added token has {len(content):,} characters, expected at most {MAX_TOKEN:,}")


def _check_normalizer(value: object) -> None:
    """Raises ValueError."""
    growth, added = 1.0, 0
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if part is None:
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or not isinstance(kind, str) or (kind not in _GROWTH and kind != "Replace"):
            raise ValueError(f"the normalizer {shown(part)} is not one of {', '.join([*_GROWTH, 'Replace'])}")
        if kind == "Replace":
            growth *= _replace_growth(part)
        elif kind == "Sequence":
            inside = part.get("normalizers")
            waiting += inside if isinstance(inside, list) else []
        elif kind == "Prepend":
            added += len(str(part.get("prepend")))
        growth *= _GROWTH.get(kind, 1)
        if growth > _MOST_GROWTH * _GROWTH["NFC"] or added > _MOST_ADDED:
            raise ValueError(f"its normalizers make a text {growth:,.0f} times as long, plus {added:,} characters")


def _replace_growth(part: dict[str, Any]) -> float:
    """Return the most characters that a Replace turns one into. Raises ValueError."""
    pattern, content = part.get("pattern"), part.get("content")
    if not isinstance(pattern, dict) or not isinstance(content, str):
        raise ValueError(f"the normalizer {shown(part)} has no pattern and content")
    text = pattern.get("String")
    if isinstance(text, str):
        if not text:
            raise ValueError("a normalizer replaces an empty text")
        return max(len(content) / len(text), 1)
    return 1 + len(content)  # an expression may match nothing, before each character


def _expressions(data: object) -> Iterator[str]:
    waiting = [data]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if isinstance(found := part.get("Regex"), str):
                yield found
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _check_expression(pattern: str) -> None:
    """Raise ValueError for an expression that may try so many ways to match a text that it seems to hang.

    The library gives up after ten million ways at one place, and there may be a million places. So repetitions within
    repetitions are refused, and so are more than a few beside each other.
    """
    if len(pattern) > _LONGEST_EXPRESSION:
        raise ValueError(f"an expression of {len(pattern):,} characters, expected at most {_LONGEST_EXPRESSION:,}")
    branch = _Repetitions()
    around: list[_Repetitions] = []  # branches of the enclosing groups
    last = 0  # repetitions in the part before
    place, classes = 0, 0
    while place < len(pattern):
        found = next(filter(None, (kind.match(pattern, place) for kind in _PARTS)))
        part, before, last = found[0], last, 0
        if classes or part == "[":
            classes += (part == "[") - (part == "]")
        elif part.startswith("(") and not _OPTION.fullmatch(part):
            around.append(branch)
            branch = _Repetitions()
        elif part == ")" and around:
            inside, branch = branch, around.pop()
            last = branch.add(inside)
        elif part == "|":
            branch.end()
        elif found.re is _REPEAT:
            if before and found["mark"] != "?":
                raise ValueError(f"the expression {shown(pattern)} repeats a repetition")
            last = branch.repeat(found["mark"])
        if branch.variable > _MOST_VARIABLE or branch.unlimited > _MOST_UNLIMITED:
            raise ValueError(f"the expression {shown(pattern)} has too many repetitions beside each other")
        place = found.end()


@dataclass
class _Repetitions:
    """Repetitions in one branch of an expression, and the most in the branches beside it."""

    variable: int = 0  # of any kind but a fixed number
    unlimited: int = 0
    most_variable: int = 0
    most_unlimited: int = 0

    def repeat(self, mark: str) -> int:
        """Count a repetition; return 1, or 0 for a fixed number."""
        low, comma, high = mark.strip("{}").partition(",")
        if mark.startswith("{") and (not comma or low == high):
            return 0
        self.variable += 1
        self.unlimited += mark in ("*", "+") or mark.endswith(",}")
        return 1

    def end(self) -> None:
        """End the branch, and begin another."""
        self.most_variable = max(self.most_variable, self.variable)
        self.most_unlimited = max(self.most_unlimited, self.unlimited)
        self.variable = self.unlimited = 0

    def add(self, group: _Repetitions) -> int:
        """Count the repetitions of a group in this branch; return how many they are."""
        group.end()
        self.variable += group.most_variable
        self.unlimited += group.most_unlimited
        return group.most_variable
