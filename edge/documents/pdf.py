"""The text of a PDF, page after page.

In: an open file. Out: the text of each page, without opening the next ones; pages that give none are noted. Pictures
are not read, so a scan is an error that says so. pypdf reads what it can of a damaged file; here, in silence.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from edge.documents.clean import clean, letters
from edge.documents.source import Part, Source, separated
from edge.runtime.errors import DocumentError, in_words, telling_line
from edge.runtime.extras import missing_packages_named

if TYPE_CHECKING:
    from pypdf import PdfReader

_DAMAGED = "open it in a viewer and save or print it as PDF again"
_NEEDS_CRYPTOGRAPHY = "DependencyError"  # a class of pypdf's, for AES without the cryptography package


def open_pdf(file: BinaryIO, name: str) -> Source:
    """Read a PDF's table of contents and the number of its pages. Raises DocumentError and MissingPackageError."""
    with missing_packages_named():
        from pypdf import PdfReader

    logging.getLogger("pypdf").addHandler(logging.NullHandler())  # or what it notes would go to stderr
    try:
        reader = PdfReader(file)
        encrypted = reader.is_encrypted and not reader.decrypt("")
        pages = 0 if encrypted else len(reader.pages)
    except Exception as error:  # pypdf's own, and whatever else a damaged file makes it run into
        if type(error).__name__ == _NEEDS_CRYPTOGRAPHY:
            raise _encrypted(name) from error
        raise DocumentError(f"{name} is damaged ({_reason(error)}); {_DAMAGED}") from error
    if encrypted:
        raise _encrypted(name)
    if not pages:
        raise DocumentError(f"{name} is damaged (it has no pages); {_DAMAGED}")
    source = Source(name, file, iter(()), pages, "pages", pages)
    source.parts = separated(_parts(reader, source))
    return source


def _parts(reader: PdfReader, source: Source) -> Iterator[Part]:
    failures: list[str] = []
    for number in range(1, source.total + 1):
        try:
            text = letters(clean(reader.pages[number - 1].extract_text())).strip()
        except Exception as error:
            text = ""
            failures.append(f"page {number:,}: {_reason(error)}")
        if not text:
            source.without_text.append(number)
            continue
        yield Part(text, number)
    if len(source.without_text) < source.total:
        return
    pages = f"{source.total:,} page{'s' * (source.total > 1)}"
    if failures:
        raise DocumentError(f"{source.name} is damaged: none of its {pages} can be read ({failures[0]}); {_DAMAGED}")
    raise DocumentError(
        f"{source.name} has {pages} and no text: a scan, pictures, or damaged; recognize its text first, with ocrmypdf"
    )


def _encrypted(name: str) -> DocumentError:
    return DocumentError(f"{name} is encrypted; open it with its password and save or print it without one")


def _reason(error: Exception) -> str:
    return in_words(telling_line(error))
