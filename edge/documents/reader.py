"""A path to a document, whatever its format.

In: a path. Out: an open `Source`, or a whole `Document`. Which format a file has is decided in `formats`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from edge.documents.document import Document
from edge.documents.formats import ADVICE, opener
from edge.documents.source import Part, Source
from edge.runtime.errors import DocumentError
from edge.runtime.files import open_file


def open_document(path: str | Path, name: str | None = None) -> Source:
    """Open a document to be read part by part; what can be known without reading it whole is checked now.

    name: how to call it, if not by its file name. Raises DocumentError and MissingPackageError.
    """
    file = open_file(Path(path), DocumentError, ADVICE)
    name = printable_name(Path(path).name) if name is None else name
    try:
        if not os.fstat(file.fileno()).st_size:
            raise DocumentError(f"{name} is empty; {ADVICE}")
        return opener(file, name)(file, name)
    except BaseException:
        file.close()
        raise


def read_document(path: str | Path, *, fits: Callable[[int], bool] | None = None) -> Document:
    """Return a document with all of its text.

    fits: called with the number of characters so far, page after page; once it returns False, the rest is not read.
    Raises DocumentError for a file that is not a document, is damaged, encrypted or without text, or does not fit; and
    MissingPackageError when the extra for its format is missing.
    """
    with open_document(path) as source:
        length = 0

        def take(part: Part) -> None:
            nonlocal length
            length += len(part.text)
            if fits is not None and not fits(length):
                raise DocumentError(
                    f"{source.name} is too long: {length:,} characters with {source.progress(part)}; give a part of it"
                )

        return source.read(take)


def printable_name(name: str) -> str:
    """Return a file name on one line, as a prompt can hold it."""
    text = name.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
