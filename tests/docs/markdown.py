"""What the tests of documents read in the sentences of a page: headings, links, code, and the paths that it names.

In: Markdown as this project writes it (ATX headings, fenced blocks, no raw HTML but comments). Out: plain lists. Knows
nothing about which pages there are, or what they should say; blocks of code are `shown`'s.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.docs.shown import blocks

FOLDERS = ("benchmarks", "docs", "edge", "export", "profiles", "runtime", "tests")  # paths begin with one of them

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^ *(?P=fence) *$", re.M | re.S
)
_INDENTED = re.compile(r"(?:^|\n)\n((?: {4}[^\n]*\n(?:[ ]*\n)*)+)")
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S)
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_LINK = re.compile(
    r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)|!\[[^\]]*\]\((?P<image>[^()\s]+)\)", re.S
)
_HEADING = re.compile(r"^(#{1,6}) +(.+?) *#*$", re.M)
_PATH = re.compile(rf"(?<![\w./<>{{}}-])(?:{'|'.join(FOLDERS)})/[\w./{{}},*-]*")
_BRACES = re.compile(r"\{([^{}]*)\}")


@cache
def read(path: Path) -> str:
    """A page's text."""
    return path.read_text(encoding="utf-8")


def prose(text: str) -> str:
    """A page without comments and blocks of code; inline code stays."""
    return _INDENTED.sub("\n\n", _FENCE.sub("", _COMMENT.sub("", text)))


def inline_code(text: str) -> list[str]:
    """What stands in backticks, on one line each."""
    return [" ".join(match[2].split()) for match in _SPAN.finditer(prose(text))]


def headings(text: str) -> list[str]:
    """Headings as they are read: without backticks and links."""
    return [_LINK.sub(lambda m: m["text"] or "", match[2]).replace("`", "") for match in _HEADING.finditer(prose(text))]


def links(text: str) -> list[str]:
    """Targets of links and images, outside of code."""
    return [match["target"] or match["image"] for match in _LINK.finditer(_SPAN.sub("", prose(text)))]


def github_anchors(text: str) -> set[str]:
    """As GitHub names headings: a second one of the same name gets -1."""
    return set(_numbered((_github_slug(heading) for heading in headings(text)), "-"))


def mkdocs_anchors(text: str) -> set[str]:
    """As Python-Markdown's extension `toc` names headings, with its defaults: a second one gets _1."""
    return set(_numbered((_mkdocs_slug(heading) for heading in headings(text)), "_"))


def paths(text: str) -> list[str]:
    """Paths of this project in code, inline and in blocks, with braces spelled out: `a/{b,c}.py` are two.

    What stands before a placeholder is a path as well: `tests/<name>.py` names the folder `tests/`.
    """
    code = [*inline_code(text), *(block.text for block in blocks(text)), *_INDENTED.findall(_FENCE.sub("", text))]
    named = itertools.chain.from_iterable(_PATH.findall(part) for part in code)
    return [path.rstrip(".,") for name in named for path in _spelled_out(name)]


def _github_slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _mkdocs_slug(heading: str) -> str:
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def _numbered(slugs: Iterator[str], mark: str) -> Iterator[str]:
    seen: Counter[str] = Counter()
    for slug in slugs:
        yield f"{slug}{mark}{seen[slug]}" if seen[slug] else slug
        seen[slug] += 1


def _spelled_out(name: str) -> list[str]:
    if (match := _BRACES.search(name)) is None:
        return [name]
    return [
        path
        for option in match[1].split(",")
        for path in _spelled_out(name[: match.start()] + option.strip() + name[match.end() :])
    ]
