"""What a model asks of the browser, in either form.

In: GLM-4's own text, like `search("query", recency_days=30)`, `mclick([0, 1])` or `open_url("...")`; or the arguments
of a function call. Out: one record. Nothing is evaluated: the text follows a grammar of names, strings, whole numbers
and one list. Knows nothing about documents. Errors are ToolErrors that a model can act on.

    call     = name "(" [ argument { "," argument } [ "," ] ] ")"
    argument = [ name "=" ] ( string | whole | "[" [ whole { "," whole } [ "," ] ] "]" )
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edge.runtime.errors import ToolError, shown

LONGEST = 10_000  # characters of a call
MOST_IDS = 10
_LARGEST = 10**9
_USAGE = 'write search("words"), mclick([0, 1]) or open_url("name of a file")'
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<name>[A-Za-z_][A-Za-z_0-9]*)
      | (?P<whole>-?[0-9]{1,10}(?![0-9A-Za-z_.]))
      | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<mark>[()\[\],=])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}


@dataclass(frozen=True, slots=True)
class Search:
    """recency_days: only files changed in so many days; None: all."""

    query: str
    recency_days: int | None = None


@dataclass(frozen=True, slots=True)
class Click:
    """ids: of results of the last search, or of pages that were opened."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Open:
    """url: the name of a file in the folder, with "#" and a position if not from its beginning."""

    url: str


Action = Search | Click | Open
Value = str | int | tuple[int, ...]

# Names of parameters in their order.
_PARAMETERS = {"search": ("query", "recency_days"), "mclick": ("ids",), "open_url": ("url",)}


def parse_call(text: str) -> Action:
    """Return the action that GLM-4's own text asks for. Raises ToolError."""
    if len(text) > LONGEST:
        raise ToolError(f"the call has {len(text):,} characters, at most {LONGEST:,}; {_USAGE}")
    tokens = list(_tokens(text.strip()))
    name = _next(tokens, "name")
    if name not in _PARAMETERS:
        raise ToolError(f"there is no function {shown(name)}; {_USAGE}")
    _expect(tokens, "(")
    given: dict[str, Value] = {}
    while not _take(tokens, ")"):
        key, value = _argument(tokens)
        if key is None:
            if len(given) >= len(_PARAMETERS[name]):
                raise ToolError(f"{name} has too many arguments; {_USAGE}")
            key = _PARAMETERS[name][len(given)]
        if key in given or key not in _PARAMETERS[name]:
            raise ToolError(f"{name} has no second or other argument {shown(key)}; {_USAGE}")
        given[key] = value
        if not _take(tokens, ","):
            _expect(tokens, ")")
            break
    if tokens:
        raise ToolError(f"there is more after the call: {shown(tokens[0][1])}; make one call at a time")
    return _action(name, given)


def from_arguments(arguments: Mapping[str, Any]) -> Action:  # Any: JSON
    """Return the action that the arguments of a function call ask for. Raises ToolError."""
    given = {key: value for key, value in arguments.items() if value is not None}
    if "input" in given and len(given) == 1:
        if not isinstance(given["input"], str):
            raise ToolError(f"input is {shown(given['input'])}, expected a text; {_USAGE}")
        return parse_call(given["input"])
    for name, parameters in _PARAMETERS.items():
        if parameters[0] in given and given.keys() <= set(parameters):
            return _action(name, given)
    raise ToolError(
        'give exactly one of {"query": "words"}, {"ids": [0, 1]} and {"url": "name of a file"}; '
        f"given are {shown(sorted(map(str, given)))}"
    )


def _action(name: str, given: Mapping[str, Any]) -> Action:
    if name == "search":
        days = given.get("recency_days")
        if days is not None and (isinstance(days, bool) or not isinstance(days, int) or abs(days) > _LARGEST):
            raise ToolError(f"recency_days is {shown(days)}, expected a whole number of days")
        return Search(_text(given, "query", "words to search for"), days if days is not None and days > 0 else None)
    if name == "open_url":
        return Open(_text(given, "url", "the name of a file, as a search shows it"))
    ids = given.get("ids")
    ids = [ids] if isinstance(ids, int) and not isinstance(ids, bool) else ids
    if not isinstance(ids, list | tuple) or not 1 <= len(ids) <= MOST_IDS:
        raise ToolError(f"ids is {shown(ids)}, expected a list of 1 to {MOST_IDS} numbers of results")
    for number in ids:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= _LARGEST:
            raise ToolError(f"ids holds {shown(number)}, expected numbers of results")
    return Click(tuple(dict.fromkeys(ids)))


def _text(given: Mapping[str, Any], key: str, expected: str) -> str:
    value = given.get(key)
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST:
        raise ToolError(f"{key} is {shown(value)}, expected {expected}")
    return value.strip()


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise ToolError(f"not understood: {shown(text[at : at + 40])}; {_USAGE}")
        yield match.lastgroup, match[match.lastgroup]
        at = match.end()


def _argument(tokens: list[tuple[str, str]]) -> tuple[str | None, Value]:
    key = None
    if tokens and tokens[0][0] == "name":
        key = _next(tokens, "name")
        _expect(tokens, "=")
    if _take(tokens, "["):
        ids: list[int] = []
        while not _take(tokens, "]"):
            ids.append(int(_next(tokens, "whole")))
            if not _take(tokens, ","):
                _expect(tokens, "]")
                break
        return key, tuple(ids)
    if tokens and tokens[0][0] == "whole":
        return key, int(_next(tokens, "whole"))
    return key, _ESCAPE.sub(_unescaped, _next(tokens, "string")[1:-1])


def _unescaped(match: re.Match[str]) -> str:
    if match[1]:
        return chr(int(match[1], 16)).encode("utf-8", "replace").decode()  # half a surrogate pair becomes "?"
    return _ESCAPED.get(match[2], match[2])


def _take(tokens: list[tuple[str, str]], mark: str) -> bool:
    if tokens and tokens[0] == ("mark", mark):
        del tokens[0]
        return True
    return False


def _expect(tokens: list[tuple[str, str]], mark: str) -> None:
    if not _take(tokens, mark):
        found = shown(tokens[0][1]) if tokens else "the end"
        raise ToolError(f"found {found} where {mark!r} was expected; {_USAGE}")


def _next(tokens: list[tuple[str, str]], kind: str) -> str:
    if not tokens or tokens[0][0] != kind:
        found = shown(tokens[0][1]) if tokens else "the end"
        expected = {"name": "the name of a function", "whole": "a whole number", "string": "a text in quotes"}[kind]
        raise ToolError(f"found {found} where {expected} was expected; {_USAGE}")
    return tokens.pop(0)[1]
