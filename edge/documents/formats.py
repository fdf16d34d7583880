"""Which reader a file needs: by what it holds where that is certain, else by the ending of its name.

In: an open file and its name. Out: the reader, and the file at its beginning again; or an error for formats that are
known and not read. A text file is text whatever its ending, except for the endings of HTML.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import PurePath
from typing import BinaryIO

from edge.documents.html import open_html
from edge.documents.pdf import open_pdf
from edge.documents.plain import open_plain
from edge.documents.source import Source
from edge.documents.word import MAIN_PART, open_docx
from edge.runtime.errors import DocumentError

ADVICE = "give a file of txt, md, html, pdf or docx"
Opener = Callable[[BinaryIO, str], Source]

_HEAD_BYTES = 1024  # readers of PDF look for its mark in as many
_PDF = b"%PDF-"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html)[\s>]", re.IGNORECASE)
_TEXT_ENDINGS = frozenset({".txt", ".md", ".markdown"})  # text, even if it is the source of a page
_HTML_ENDINGS = frozenset({".html", ".htm", ".xhtml"})
_WITH_BYTES = {".pdf": "PDF", ".docx": "Word document"}  # what these endings promise is seen in the first bytes
_PICTURE = (
    "is a picture; give it as --image to a model that sees pictures, or recognize its text first, as with `tesseract`"
)
_NOT_READ = {  # first bytes -> what it is, and what to do
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "is an old or encrypted file of Word, Excel or PowerPoint; save it as a "
    ".docx without a password",
    b"{\\rtf": "is RTF; save it as .docx",
    b"\x89PNG": _PICTURE,
    b"\xff\xd8\xff": _PICTURE,
    b"GIF8": _PICTURE,
    b"II*\0": _PICTURE,
    b"MM\0*": _PICTURE,
    b"\x1f\x8b": "is compressed; unpack it first",
}


def opener(file: BinaryIO, name: str) -> Opener:
    """Return the reader for a file. Raises DocumentError."""
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    ending = PurePath(name).suffix.lower()
    if head.startswith(_PDF) or (ending == ".pdf" and _PDF in head):
        return open_pdf
    if head.startswith(_ZIP):
        _check_word(file, name)
        return open_docx
    for begin, problem in _NOT_READ.items():
        if head.startswith(begin):
            raise DocumentError(f"{name} {problem}")
    if ending in _WITH_BYTES:
        what = " but HTML: it may be the page of an error in place of a download" if _HTML.match(head) else ""
        raise DocumentError(f"{name} is not a {_WITH_BYTES[ending]}{what}; {ADVICE}, with the ending of what it is")
    if ending in _HTML_ENDINGS or (ending not in _TEXT_ENDINGS and _HTML.match(head)):
        return open_html
    return open_plain


def _check_word(file: BinaryIO, name: str) -> None:
    """Raises DocumentError for an archive that is not a Word document."""
    try:
        with zipfile.ZipFile(file) as archive:
            found = MAIN_PART in archive.NameToInfo
    except Exception as error:  # zipfile raises more than BadZipFile for a damaged one
        raise DocumentError(f"{name} is a damaged ZIP archive, or half a Word document; copy it again") from error
    finally:
        file.seek(0)
    if not found:
        raise DocumentError(
            f"{name} is a ZIP archive without {MAIN_PART} (xlsx, pptx, odt, epub?); save it as docx or pdf"
        )
