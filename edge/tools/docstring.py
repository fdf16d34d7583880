"""What a docstring says of a function and of its parameters.

In: a docstring, and the names of the parameters. Out: the first paragraph, and a text for each described parameter.
Reads the three usual styles, and any mixture of them:

    Args:                  Parameters              :param city: where
        city (str): where  ----------
                           city : str
                               where

Names are known beforehand, so that nothing else is taken for one, and an unknown section costs nothing. (Parsers of
docstrings that are not told the names give up a whole section for one odd line, as docstring_parser 0.18 does.)
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator

_GOOGLE = re.compile(r"(Args|Arguments|Params|Parameters|Keyword Arg(ument)?s|Other Parameters):\s*$", re.IGNORECASE)
_ANY_GOOGLE = re.compile(r"[A-Z][A-Za-z ]{2,30}:\s*$")
_NUMPY = re.compile(r"(Other )?Parameters\s*$")
_RULE = re.compile(r"-{3,}\s*$")
_REST = re.compile(r":(?:param|parameter|arg|argument|key|keyword)\s+(?:[^:]*\s)?\\?\*{0,2}(\w+)\s*:(.*)")
_GOOGLE_ENTRY = re.compile(r"\*{0,2}(\w+)\s*(?:\(.*?\))?\s*:(?!:)(.*)")
_NUMPY_ENTRY = re.compile(r"([\w*, ]+?)\s*(?::.*)?$")


def described(docstring: str | None, names: Collection[str]) -> tuple[str, dict[str, str]]:
    """Return the description of a function, which may be empty, and those of its parameters."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    found = [*_rest(lines), *_google(lines), *_numpy(lines)]
    return _first_paragraph(lines), {name: text for name, text in found if name in names and text}


def _first_paragraph(lines: list[str]) -> str:
    kept: list[str] = []
    for i, line in enumerate(lines):
        begins_section = _ANY_GOOGLE.match(line) and _indent(lines, i + 1) > 0
        if not line.strip() or begins_section or line.startswith(":") or _is_rule(lines, i + 1):
            break
        kept.append(line.strip())
    return " ".join(kept)


def _rest(lines: list[str]) -> Iterator[tuple[str, str]]:
    for i, line in enumerate(lines):
        if (entry := _REST.match(line.strip())) is not None:
            yield entry[1], _joined([entry[2], *_indented(lines, i + 1, _indent(lines, i))])


def _google(lines: list[str]) -> Iterator[tuple[str, str]]:
    for i, line in enumerate(lines):
        if _GOOGLE.match(line.strip()):
            body = _indented(lines, i + 1, _indent(lines, i))
            level = _indent(body, 0)
            for j, first in enumerate(body):
                if _indent(body, j) == level and (entry := _GOOGLE_ENTRY.match(first.strip())) is not None:
                    yield entry[1], _joined([entry[2], *_indented(body, j + 1, level)])


def _numpy(lines: list[str]) -> Iterator[tuple[str, str]]:
    for i, line in enumerate(lines):
        if not (_NUMPY.match(line) and _is_rule(lines, i + 1)):
            continue
        for j in range(i + 2, len(lines)):
            if _is_rule(lines, j + 1):  # the next section
                break
            if lines[j][:1].strip() and (entry := _NUMPY_ENTRY.match(lines[j])) is not None:
                text = _joined(_indented(lines, j + 1, 0))
                yield from ((name.strip(" *"), text) for name in entry[1].split(","))


def _indented(lines: list[str], begin: int, level: int) -> list[str]:
    """Return the lines from `begin` on that are indented by more than `level`, and blank ones between them."""
    end = begin
    while end < len(lines) and (not lines[end].strip() or _indent(lines, end) > level):
        end += 1
    return lines[begin:end]


def _indent(lines: list[str], number: int) -> int:
    """Return by how much a line is indented; 0 if there is no such line."""
    return len(lines[number]) - len(lines[number].lstrip()) if number < len(lines) else 0


def _is_rule(lines: list[str], number: int) -> bool:
    return number < len(lines) and _RULE.match(lines[number]) is not None


def _joined(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())
