"""The readable text of an HTML page, in the order of its source.

In: an open file. Out: its text in parts: blocks on lines of their own, headings marked with #, items of lists with - or
their number, rows of tables on a line with | between cells. Scripts, styles, comments, readings over Chinese characters
and what is marked as hidden are left out. A table that holds another one is taken for layout. Fetches nothing.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from edge.documents.clean import clean
from edge.documents.line_writer import LineWriter
from edge.documents.source import Part, Source
from edge.runtime.errors import DocumentError, in_words
from edge.runtime.extras import missing_packages_named
from edge.runtime.unicode import marked_encoding

if TYPE_CHECKING:
    from bs4 import BeautifulSoup
    from bs4.element import PageElement, Tag

MAX_BYTES = 20_000_000  # parsed in some 10 s, in 1 GB of memory
PART_CHARACTERS = 20_000
_HEAD_BYTES = 4096  # where a page has to name its encoding; browsers look at 1,024
_DECLARED = re.compile(
    rb"""<(?:meta[^>]{0,500}?charset|\?xml[^>]{0,200}?encoding)\s*=\s*["']?\s*([\w.:-]{1,40})""", re.I
)
# Encodings of the web, and those that pages mean by smaller names (https://encoding.spec.whatwg.org, names and labels).
_ENCODINGS = re.compile(
    r"utf_8|utf_16(_[lb]e)?|gb.*|hz|big5.*|euc_.*|shift_jis.*|cp\d+|iso8859_\d+|koi8_.|mac_.*|ascii"
)
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "iso8859_1": "cp1252",
          "ascii": "cp1252", "iso8859_9": "cp1254", "big5": "big5hkscs", "utf_16": "utf_8"}  # fmt: skip
_SKIPPED = re.compile("script|style|template|noscript|iframe|object|embed|svg|canvas|audio|video|datalist|rp|rt")
_LINES = re.compile(  # elements that begin and end a line
    "address|article|aside|body|caption|center|dd|details|dialog|div|dt|fieldset|figcaption|figure|footer|form|header|"
    "hgroup|html|legend|li|main|nav|option|optgroup|section|summary|tbody|tfoot|thead|tr"
)
_SPACED = re.compile("p|h[1-6]|ul|ol|dl|menu|dir|table|pre|blockquote|hr|title")  # and have an empty line around them
_LISTS = frozenset(("ul", "ol", "menu", "dir"))
_HEADING = re.compile(r"h[1-6]")
_MOST_INDENT = 10  # levels of nested lists
_MOST_UNCLOSED = 100  # comments without an end; more are text, as html.parser takes minutes for them
_BOGUS = re.compile(r"<!\[(?!CDATA\[|if|else|endif)[^>]*>", re.IGNORECASE)  # a comment to browsers
_OPEN_TAG = re.compile(r"<[A-Za-z/!?]")


def open_html(file: BinaryIO, name: str) -> Source:
    """Open a page, which is parsed with its first part. Raises DocumentError and MissingPackageError."""
    with missing_packages_named():
        import bs4  # noqa: F401

    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DocumentError(
            f"{name} has more than {MAX_BYTES:,} bytes, the most that is read of an HTML page; give a part of it"
        )
    source = Source(name, file, iter(()), len(data), "bytes")
    source.parts = _parts(decoded(data, name), source)
    return source


def decoded(data: bytes, name: str) -> str:
    """Return a page as text: by its byte-order mark, by the encoding that it names, or as UTF-8."""
    mark, encoding = marked_encoding(data) or (b"", "")
    data = data.removeprefix(mark)
    if not encoding and (found := _DECLARED.search(data[:_HEAD_BYTES])):
        encoding = _known_encoding(found[1].decode("ascii", "replace"))
    if encoding:
        return data.decode(encoding, "replace")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{name} is not UTF-8 (byte 0x{data[error.start]:02X} at position {error.start:,}) and names no other "
            'encoding; convert it to UTF-8, or name its own as in <meta charset="gbk">'
        ) from error


def _known_encoding(label: str) -> str:
    """Return Python's name of an encoding of the web, or nothing."""
    try:
        name = codecs.lookup(label).name.replace("-", "_")
    except LookupError:
        return ""
    return _WIDER.get(name, name) if _ENCODINGS.fullmatch(name) else ""


def page_text(markup: str, name: str) -> str:
    """Return the readable text of a page. Raises DocumentError."""
    from bs4 import BeautifulSoup

    # The tag in front keeps bs4 from warning that a page looks like a file name or like XML. What html.parser refuses
    # goes, and what it takes quadratic time for: a tag that has no end, and many comments without one.
    last = markup.rfind(">") + 1
    if found := _OPEN_TAG.search(markup, last):
        markup = markup[: found.start()]
    closed = markup.rfind("-->") + 1
    if markup.count("<!--", closed) > _MOST_UNCLOSED:
        markup = markup[:closed] + markup[closed:].replace("<!--", "&lt;!--")
    markup = _BOGUS.sub("", markup)
    try:
        soup = BeautifulSoup(f"<html>{markup}", "html.parser")
    except Exception as error:  # html.parser also fails by AssertionError
        raise DocumentError(
            f"{name} cannot be read as HTML ({in_words(error) or type(error).__name__}); save it as PDF or text"
        ) from error
    writer = LineWriter()
    _walk(soup, writer)
    return clean(writer.text())


def _walk(soup: BeautifulSoup, writer: LineWriter) -> None:
    """Write a tree; without recursion, as pages can be nested more deeply than Python allows calls."""
    from bs4.element import NavigableString, Tag

    layout = _layout_tables(soup)
    state = _State(writer, layout)
    stack: list[tuple[PageElement, bool]] = [(soup, False)]
    while stack:
        node, leaving = stack.pop()
        if isinstance(node, Tag):
            if leaving:
                state.leave(node)
            elif not _SKIPPED.fullmatch(node.name) and not node.has_attr("hidden"):
                state.enter(node)
                stack.append((node, True))
                stack += [(child, False) for child in reversed(node.contents)]
        elif type(node) is NavigableString:  # not a comment, a doctype or a reading (rt), which are subclasses
            (writer.verbatim if state.verbatim else writer.inline)(str(node))


def _layout_tables(soup: BeautifulSoup) -> set[int]:
    """Return the ids of tables that hold other tables."""
    from bs4.element import Tag

    found: set[int] = set()
    inside: dict[int, int | None] = {}  # table -> the table around it
    stack: list[tuple[Tag, int | None]] = [(soup, None)]
    while stack:
        node, table = stack.pop()
        if node.name == "table":
            inside[id(node)] = table
            if table is not None:
                found.add(table)
            table = id(node)
        stack += [(child, table) for child in node.contents if isinstance(child, Tag)]
    return found


class _State:
    """What is open while a tree is written."""

    def __init__(self, writer: LineWriter, layout: set[int]) -> None:
        self._writer, self._layout = writer, layout
        self._lists: list[list[int | None]] = []  # of each open list: the number of the next item, None for a mark
        self._tables: list[bool] = []  # of each open table: whether it is one of data, which holds no other
        self._first_cell = True
        self.verbatim = 0

    def enter(self, tag: Tag) -> None:
        """html.parser puts what has no end tag into what came before: a cell can be in a cell, an item in an item."""
        writer, name = self._writer, tag.name
        if name in ("tr", "table"):
            writer.one_line = False
        self._breaks(name)
        if name == "br":
            writer.end_line()
        elif name in _LISTS:
            self._lists.append([_first_number(tag) if name == "ol" else None])
        elif name == "li":
            writer.prefix(self._mark())
        elif name == "table":
            self._tables.append(id(tag) not in self._layout)
        elif name == "tr":
            self._first_cell = True
        elif name in ("td", "th"):
            self._enter_cell()
        elif name == "pre":
            self.verbatim += 1
        elif name == "img":
            writer.inline(str(tag.get("alt") or ""))
        elif _HEADING.fullmatch(name):
            writer.prefix("#" * int(name[1]) + " ")

    def _enter_cell(self) -> None:
        if not self._tables or not self._tables[-1]:
            self._writer.end_line()
            return
        if not self._first_cell:
            self._writer.inline(" | ")
        self._first_cell, self._writer.one_line = False, True

    def leave(self, tag: Tag) -> None:
        writer, name = self._writer, tag.name
        if name in _LISTS:
            self._lists.pop()
        elif name == "table":
            self._tables.pop()
        elif name in ("td", "th"):
            writer.one_line = False
        elif name == "pre":
            self.verbatim -= 1
        elif name == "li" or _HEADING.fullmatch(name):
            writer.drop_prefix()
        self._breaks(name)

    def _breaks(self, name: str) -> None:
        if _SPACED.fullmatch(name) and not (
            name in _LISTS and self._lists
        ):  # a list in a list has no empty line around it
            self._writer.end_line(2)
        elif _LINES.fullmatch(name) or name in _LISTS:
            self._writer.end_line()

    def _mark(self) -> str:
        if not self._lists:
            return "- "
        indent = "  " * min(len(self._lists) - 1, _MOST_INDENT)
        number = self._lists[-1][0]
        if number is None:
            return f"{indent}- "
        self._lists[-1][0] = number + 1
        return f"{indent}{number}. "


def _first_number(tag: Tag) -> int:
    start = str(tag.get("start") or "")
    return int(start) if re.fullmatch(r"-?[0-9]{1,9}", start) else 1


def _parts(markup: str, source: Source) -> Iterator[Part]:
    text = page_text(markup, source.name)
    if not text:
        raise DocumentError(
            f"{source.name} has no text: it may be built by its scripts in a browser; save it as PDF there"
        )
    source.total, source.unit = len(text), "characters"
    begin = 0
    while begin < len(text):
        end = text.rfind("\n", begin, begin + PART_CHARACTERS) + 1
        end = end if end and begin + PART_CHARACTERS < len(text) else min(begin + PART_CHARACTERS, len(text))
        yield Part(text[begin:end], end)
        begin = end
