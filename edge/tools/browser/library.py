"""The documents of a folder: which there are, their text, cut into passages, and the index over these.

In: a folder, read again where files have changed since the last time. Out: `Page`s by name, and passages by words.
Never writes. Links are not followed and hidden files are not read, so that all text comes from inside the folder.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.documents import read_document
from edge.documents.reader import printable_name
from edge.runtime.errors import DocumentError, ToolError, in_words, shown
from edge.runtime.extras import missing_packages_named
from edge.runtime.files import real_path
from edge.runtime.rules import Settings, Whole, setting
from edge.tools.browser.words import lone, terms

SUFFIXES = frozenset({".txt", ".md", ".markdown", ".html", ".htm", ".xhtml", ".pdf", ".docx"})
_PASSAGE = 800  # characters, about: a paragraph or two
_TITLE = 80  # characters
_HEADING = re.compile(r"^#{1,3}[ \t]+(\S.*)$", re.MULTILINE)
_CUTS = ("\n\n", "\n", "。", ". ", " ")  # where a passage ends if it can, the best first


@dataclass(frozen=True, slots=True)
class LibraryLimits(Settings):
    """What a folder may hold. Raises SettingsError for a value of the wrong type or outside its range."""

    files: int = setting(2000, Whole(1), "files that are read")
    file_bytes: int = setting(64 << 20, Whole(1), "size of one of them")
    characters: int = setting(64 << 20, Whole(1), "text of all of them together, which is kept in memory")


@dataclass(frozen=True, slots=True)
class Page:
    """A document. name: its path inside the folder, with "/"; changed: seconds since 1970."""

    name: str
    title: str
    text: str
    changed: float


@dataclass(frozen=True, slots=True)
class Passage:
    page: Page
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.page.text[self.start : self.end]


class Library:
    """Not thread-safe. Raises ToolError for a folder that is beyond the limits, or gone."""

    def __init__(self, folder: Path, limits: LibraryLimits) -> None:
        self._folder, self._limits = folder, limits
        self._seen: dict[str, tuple[int, int]] = {}  # time and size of each file when it was read
        self.pages: dict[str, Page] = {}
        self.unread: dict[str, str] = {}  # name -> why
        self._passages: list[Passage] = []
        self._index: _Index | None = None

    def refresh(self) -> None:
        """Read what is new or has changed since the last time, and forget what is gone."""
        found = dict(self._files())
        if len(found) > self._limits.files:
            raise ToolError(f"the folder has more than {self._limits.files:,} documents; give one of its folders")
        changed = [name for name, stamp in found.items() if self._seen.get(name) != stamp]
        gone = self._seen.keys() - found.keys()
        if not changed and not gone:
            return
        self._index = None
        for name in (*gone, *changed):
            for kept in (self._seen, self.pages, self.unread):
                kept.pop(name, None)
        room = self._limits.characters - sum(len(page.text) for page in self.pages.values())
        for name in changed:
            room -= self._read(name, found[name], room)
            self._seen[name] = found[name]

    def search(self, query: str, changed_since: float | None = None) -> Iterator[Passage]:
        """Yield passages that share a term with the query, the best first; equals in the order of the documents."""
        if self._index is None:
            pages = sorted(self.pages.values(), key=lambda page: page.name)
            self._passages = [passage for page in pages for passage in passages(page)]
            self._index = _Index([terms(f"{passage.page.title} {passage.text}") for passage in self._passages])
        for number in self._index.best(terms(query)):
            passage = self._passages[number]
            if changed_since is None or passage.page.changed >= changed_since:
                yield passage

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield names with time and size, at most one more than the limit."""
        count = 0
        waiting = [self._folder]
        while waiting:
            folder = waiting.pop()
            try:
                with os.scandir(folder) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                if folder == self._folder:
                    raise ToolError(f"the folder of documents cannot be read: {in_words(error.strerror)}") from None
                continue
            for entry in listed:
                if entry.name.startswith(".") or entry.is_symlink():
                    continue
                path = Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif path.suffix.lower() in SUFFIXES and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    name = path.relative_to(self._folder).as_posix()
                    yield name, (status.st_mtime_ns, status.st_size)
                    count += 1
                    if count > self._limits.files:
                        return

    def _read(self, name: str, stamp: tuple[int, int], room: int) -> int:
        """Read one document and return its length. One that cannot be read is kept in `unread`."""
        path = self._folder / name
        printable = printable_name(name)
        if stamp[1] > self._limits.file_bytes:
            self.unread[name] = f"it has {stamp[1]:,} bytes, at most {self._limits.file_bytes:,} are read"
            return 0
        if real_path(path) != path:  # a folder became a link meanwhile
            self.unread[name] = "it leads out of the folder"
            return 0
        too_long = False

        def fits(length: int) -> bool:
            nonlocal too_long
            too_long = length > room
            return not too_long

        try:
            text = read_document(path, fits=fits).text
        except DocumentError as error:
            if too_long:
                raise ToolError(
                    f"the documents have more than {self._limits.characters:,} characters, counted up to "
                    f"{shown(printable)}; give a folder with fewer"
                ) from None
            self.unread[name] = in_words(error)
            return 0
        self.pages[name] = Page(printable, _title(printable, text), text, stamp[0] / 1e9)
        return len(text)


class _Index:
    """BM25 over lists of terms."""

    def __init__(self, documents: Sequence[list[str]]) -> None:
        self._vocabulary = {term for document in documents for term in document}
        self._bm25 = None
        if self._vocabulary:
            with missing_packages_named("tools"):
                import bm25s

            logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for DEBUG, past what a program has set
            self._bm25 = bm25s.BM25()
            self._bm25.index(documents, show_progress=False)

    def best(self, query: list[str]) -> list[int]:
        """Return the numbers of documents with a score, the best first."""
        known = [term for term in query if term in self._vocabulary]
        for term in filter(lone, set(query)):
            known += [pair for pair in self._vocabulary if term in pair and pair != term]
        if self._bm25 is None or not known:
            return []
        scores = self._bm25.get_scores(sorted(known))
        order = (-scores).argsort(kind="stable")
        return [int(number) for number in order if scores[number] > 0]


def passages(page: Page) -> Iterator[Passage]:
    """Cut a document: every character is in exactly one passage."""
    start = 0
    while start < len(page.text):
        end = min(start + _PASSAGE, len(page.text))
        if end < len(page.text):
            for cut in _CUTS:
                at = page.text.rfind(cut, start + _PASSAGE // 2, end)
                if at >= 0:
                    end = at + len(cut)
                    break
        yield Passage(page, start, end)
        start = end


def _title(name: str, text: str) -> str:
    """Return a heading at the top, else the file's name, without the signs of a citation."""
    heading = _HEADING.search(text[:500])
    found = heading[1].strip() if heading else name.rpartition("/")[2]
    return re.sub("[【】†]", " ", found)[:_TITLE]
