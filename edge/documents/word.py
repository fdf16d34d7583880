"""The text of a Word document (.docx): paragraphs and tables in the order of the document.

In: an open file. Out: its paragraphs, and rows of tables on a line with | between cells. The text is what Word shows
when all changes are accepted, with content controls, links and text boxes; python-docx's `paragraph.text` leaves out
what is in `w:ins` and `w:sdt` (python-openxml/python-docx #1123, #155), so the XML is walked here. Notes, headers and
footers are not read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from edge.documents.clean import clean
from edge.documents.source import Part, Source, separated
from edge.runtime.errors import DocumentError, in_words, telling_line
from edge.runtime.extras import missing_packages_named

if TYPE_CHECKING:
    from zipfile import ZipInfo

MAIN_PART = "word/document.xml"
MAX_XML_BYTES = 100_000_000  # of one part, unpacked; it takes about ten times as much memory
MAX_BYTES = 1_000_000_000  # of all parts: python-docx also unpacks the pictures
_DAMAGED = "open it in Word or LibreOffice and save it again"
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_STRICT = b"http://purl.oclc.org/ooxml/wordprocessingml"  # the namespace of another dialect, which Word can write
_HEAD_BYTES = 4096
_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_SHOWN = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
_SKIPPED = frozenset({f"{_W}del", f"{_W}moveFrom", f"{_W}pPr", f"{_W}rPr", f"{_W}sdtPr", f"{_MC}Fallback"})


def open_docx(file: BinaryIO, name: str) -> Source:
    """Open a document, which is parsed with its first part. Raises DocumentError and MissingPackageError."""
    with missing_packages_named():
        import docx  # noqa: F401

    with _damage_named(name), zipfile.ZipFile(file) as archive:
        _check_sizes(archive.infolist(), name)
        size = archive.getinfo(MAIN_PART).file_size
        with archive.open(MAIN_PART) as main:
            if _STRICT in main.read(_HEAD_BYTES):
                raise DocumentError(f"{name} is Strict Open XML, which is not read; save it as a usual .docx")
    source = Source(name, file, iter(()), size, "bytes")
    source.parts = separated(_parts(source))
    return source


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Turn what zipfile, zlib, lxml and python-docx raise, or run into, for a damaged file into a DocumentError."""
    try:
        yield
    except DocumentError:
        raise
    except Exception as error:
        raise DocumentError(f"{name} is damaged ({in_words(telling_line(error))}); {_DAMAGED}") from error


def _check_sizes(entries: list[ZipInfo], name: str) -> None:
    """Refuse an archive that unpacks to more than a document is; zipfile unpacks no more than an entry says."""
    largest = max((entry.file_size for entry in entries if entry.filename.endswith((".xml", ".rels"))), default=0)
    total = sum(entry.file_size for entry in entries)
    for size, most in ((largest, MAX_XML_BYTES), (total, MAX_BYTES)):
        if size > most:
            raise DocumentError(
                f"{name} unpacks to {size:,} bytes, expected at most {most:,}; give a part of it, or save it as text"
            )


def _parts(source: Source) -> Iterator[Part]:
    import docx

    with _damage_named(source.name):
        source.file.seek(0)
        body: Any = docx.Document(source.file).element.body  # Any: python-docx has no types
        blocks = [] if body is None else list(_blocks(body))
    source.total, source.unit = len(blocks), "paragraphs and tables"
    found = False
    for number, block in enumerate(blocks, 1):
        text = clean(_block(block)).strip("\n")
        if text.strip():
            found = True
            yield Part(text, number)
    if not found:
        raise DocumentError(f"{source.name} has no text; pictures in it are not read")


def _blocks(container: Any) -> Iterator[Any]:  # Any: an element of lxml
    """Yield the paragraphs and tables of a body or cell, those in content controls and insertions among them."""
    stack = [container]
    while stack:
        node = stack.pop()
        if node.tag in (f"{_W}p", f"{_W}tbl"):
            yield node
        elif node.tag not in _SKIPPED:
            stack += reversed(list(node))


def _block(block: Any) -> str:
    return _table(block) if block.tag == f"{_W}tbl" else _paragraph(block)


def _paragraph(paragraph: Any) -> str:
    """Return the text of a paragraph, with that of text boxes in it on lines of their own."""
    found: list[str] = []
    stack = list(reversed(list(paragraph)))
    while stack:
        node = stack.pop()
        if node.tag == f"{_W}t":
            found.append(node.text or "")
        elif node.tag in _SKIPPED or not isinstance(node.tag, str):
            continue
        elif node.tag.startswith(_W) and (shown := _SHOWN.get(node.tag[len(_W) :])):
            found.append(shown)
        else:
            if node.tag == f"{_W}p" and found:
                found.append("\n")
            stack += reversed(list(node))
    return "".join(found)


def _table(table: Any) -> str:
    """Return a table, a row a line; a table in a cell is part of the cell's text."""
    rows: list[str] = []
    for row in _descend(table, f"{_W}tr"):
        cells = []
        for cell in _descend(row, f"{_W}tc"):
            cells.append(" ".join(" ".join(map(_block, _blocks(cell))).split()))
        rows.append(" | ".join(cells))
    return "\n".join(row for row in rows if row.strip(" |"))


def _descend(container: Any, tag: str) -> Iterator[Any]:
    """Yield the nearest elements of a name below another, through whatever wraps them."""
    stack = list(reversed(list(container)))
    while stack:
        node = stack.pop()
        if node.tag == tag:
            yield node
        elif node.tag not in _SKIPPED:
            stack += reversed(list(node))
