"""One user's browser: what was found and opened, under which number, in the words of GLM-4's own browser.

In: actions. Out: text for the model, and the places that a citation in its answer means. The forms are those of
THUDM/GLM-4 composite_demo/browser/src/browser.ts at commit 2b78349c58d712f3ad0f28bd11a892b1aabb9787:
`【0†title†host】` and a snippet for each result, TITLE, URL and "Visible" for a page. What it sends as metadata of the
observation's role (browser_result, quote_result with a number) is the first line here.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from edge.runtime.errors import SettingsError, ToolError, in_words, shown
from edge.runtime.files import real_path
from edge.runtime.rules import FilePath, Whole, check_value
from edge.tools.browser.actions import Action, Click, Open, Search, from_arguments
from edge.tools.browser.library import Library, LibraryLimits, Page, Passage
from edge.tools.browser.words import terms

RESULTS = 10  # of a search, numbered from 0; pages that are opened have the numbers after them
_SNIPPET = 240  # characters
_LEAST = 400  # characters of each page when several are opened
_UNREAD = 3  # files that are named
_CITATION = re.compile("【([0-9]{1,9})†([^【】]*)】")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Citation:
    """A mark like 【10†text】 in an answer, and what it means.

    start, end: of the mark in the answer. name, title: of the document; None if no page has this number. position: of
    the cited text in the document, None if it is not there word for word.
    """

    start: int
    end: int
    id: int
    text: str
    name: str | None
    title: str | None
    position: int | None


class Browser:
    """The state of one conversation over a folder. Raises SettingsError. Can be used from several threads."""

    def __init__(
        self, folder: str | PathLike[str], *, page_characters: int = 4000, limits: LibraryLimits | None = None
    ) -> None:
        path: Path = check_value("folder", FilePath(), folder)
        if not path.is_dir():
            raise SettingsError(f"folder is {shown(str(path))}, expected a folder that exists", param="folder")
        if limits is not None and not isinstance(limits, LibraryLimits):
            raise SettingsError(f"limits is {shown(limits)}, expected a LibraryLimits", param="limits")
        self._page_characters: int = check_value("page_characters", Whole(_LEAST, 1 << 20), page_characters)
        self._library = Library(real_path(path), limits or LibraryLimits())
        self._lock = threading.Lock()
        self._results: list[Passage] = []
        self._opened: list[tuple[Page, int]] = []

    def run(self, arguments: Mapping[str, Any]) -> str:  # Any: JSON
        """Do what a call asks for and return the text for the model. Raises ToolError and MissingPackageError."""
        return self.do(from_arguments(arguments))

    def do(self, action: Action) -> str:
        """Raises ToolError and MissingPackageError."""
        with self._lock:
            self._library.refresh()
            match action:
                case Search():
                    return self._search(action)
                case Click():
                    return self._click(action)
                case Open():
                    page, start = self._find(action.url)
                    return self._show(page, start, self._page_characters)

    def citations(self, text: str) -> list[Citation]:
        """Return what the citations in an answer mean, in their order."""
        found = []
        with self._lock:
            for match in _CITATION.finditer(text):
                page, _ = self._numbered(int(match[1])) or (None, 0)
                at = page.text.find(match[2]) if page is not None and match[2] else -1
                found.append(
                    Citation(
                        start=match.start(),
                        end=match.end(),
                        id=int(match[1]),
                        text=match[2],
                        name=None if page is None else page.name,
                        title=None if page is None else page.title,
                        position=None if at < 0 else at,
                    )
                )
        return found

    def _search(self, action: Search) -> str:
        since = None if action.recency_days is None else time.time() - action.recency_days * _DAY
        self._results = list(islice(self._library.search(action.query, since), RESULTS))
        lines = ["browser_result"]
        wanted = set(terms(action.query))
        for number, passage in enumerate(self._results):
            lines += [f" # 【{number}†{passage.page.title}†file:{passage.page.name}】", snippet(passage.text, wanted)]
        if not self._results:
            within = "" if since is None else f" changed in the last {action.recency_days} days"
            count = len(self._library.pages)
            lines.append(f"No passage of {count} documents{within} has these words. Try other words, or fewer.")
        unread = self._library.unread
        if unread:
            some = "; ".join(f"{in_words(name)}: {why}" for name, why in islice(sorted(unread.items()), _UNREAD))
            lines.append(f"({len(unread)} files could not be read: {some})")
        return "\n".join(lines)

    def _click(self, action: Click) -> str:
        """Open what there is, as GLM-4's own browser does. Raises ToolError if that is nothing."""
        found = {number: self._numbered(number) for number in action.ids}
        pages = [page for page in found.values() if page is not None]
        missing = [str(number) for number, page in found.items() if page is None]
        last = f"0 to {len(self._results) - 1}" if self._results else "none: search first"
        told = [f"There is no result {', '.join(missing)}; results are {last}."] if missing else []
        if not pages:
            raise ToolError(told[0])
        share = max(self._page_characters // len(pages), _LEAST)
        return "\n\n".join([*(self._show(page, start, share) for page, start in pages), *told])

    def _show(self, page: Page, start: int, characters: int) -> str:
        """Return a part of a page under a new number."""
        self._opened.append((page, start))
        end = min(start + characters, len(page.text))
        if end < len(page.text):
            end = page.text.rfind("\n", start + characters * 3 // 4, end) + 1 or end
        length = max(len(page.text), 1)
        lines = [
            f"quote_result [{RESULTS + len(self._opened) - 1}†source]",
            f"TITLE: {page.title}",
            f"URL: file:{page.name}",
            "",
            page.text[start:end].strip(),
            "",
            f"Visible: {100 * start // length}% - {100 * end // length}%",
        ]
        if end < len(page.text):
            lines.append(f'To read on: open_url("{page.name}#{end}")')
        return "\n".join(lines)

    def _numbered(self, number: int) -> tuple[Page, int] | None:
        """Return a page and where it was opened, by the number of a result or of an opened page."""
        if number < len(self._results):
            passage = self._results[number]
            return passage.page, passage.start
        opened = number - RESULTS
        return self._opened[opened] if 0 <= opened < len(self._opened) else None

    def _find(self, url: str) -> tuple[Page, int]:
        """Return a page and a position by name: only names that a listing of the folder gave. Raises ToolError."""
        name = url.removeprefix("file:").removeprefix("//")
        if _SCHEME.match(url) and not url.startswith("file:"):
            raise ToolError(
                f"cannot open {shown(url)}: this browser reads local documents only, and has no internet; "
                "use search to find one"
            )
        for written in (name, unquote(name)):
            path, _, position = written.rpartition("#")
            for candidate, at in ((written, "0"), (path, position)):
                normal = str(PurePosixPath(candidate)) if candidate else ""
                if at.isascii() and at.isdigit() and (page := self._library.pages.get(normal)) is not None:
                    return page, min(int(at[:12]), max(len(page.text) - 1, 0))
        if (why := self._library.unread.get(str(PurePosixPath(name)))) is not None:
            raise ToolError(f"{shown(name)} could not be read: {why}")
        close = get_close_matches(name[:200], self._library.pages, 3)
        hint = f"did you mean {', '.join(map(shown, close))}?" if close else "use search to find one"
        raise ToolError(f"there is no document {shown(name)} in the folder; {hint}")


def snippet(text: str, wanted: set[str]) -> str:
    """Return about a line of a passage: where the most different words are that were searched for, if any."""
    line = " ".join(text.split())
    hits = [
        (match.start(), found)
        for match in re.finditer(r"\S+", line)
        if (found := wanted.intersection(terms(match[0][:_SNIPPET])))
    ]
    best = start = 0
    for first, _ in hits:
        there = set[str]().union(*(found for at, found in hits if first <= at < first + _SNIPPET // 2))
        if len(there) > best:
            best, start = len(there), first
    start = max(min(start - _SNIPPET // 4, len(line) - _SNIPPET), 0)
    if start:
        start = line.find(" ", start, start + 20) + 1 or start
    part = line[start : start + _SNIPPET]
    return ("…" if start else "") + part + ("…" if start + _SNIPPET < len(line) else "")
