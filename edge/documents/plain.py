"""Files of text as they are: UTF-8, or UTF-16 and UTF-32 that say so in their first bytes.

In: an open file. Out: its text in parts that end with a line where they can, with line ends as "\\n" and without a
byte-order mark. Bytes that are not text are one error. Markdown, source code and JSON are text like any other.
"""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterator
from typing import BinaryIO

from edge.documents.source import Part, Source
from edge.runtime.errors import DocumentError
from edge.runtime.unicode import marked_encoding

PART_BYTES = 1 << 16  # some 16,000 tokens: the most that is read in vain


def open_plain(file: BinaryIO, name: str) -> Source:
    """Open a file of text, at its beginning."""
    return Source(name, file, _parts(file, name), os.fstat(file.fileno()).st_size, "bytes")


def _parts(file: BinaryIO, name: str) -> Iterator[Part]:
    begin = file.read(4)
    mark, encoding = marked_encoding(begin) or (b"", "utf-8")
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    data, read, rest = begin[len(mark) :] + file.read(PART_BYTES), len(mark), ""
    while data:
        held = len(decoder.getstate()[0])  # bytes of a character that the last part began
        try:
            text = decoder.decode(data)
        except UnicodeDecodeError as error:
            raise _not_text(name, encoding, error, read - held) from error
        read += len(data)
        if "\0" in text:
            raise DocumentError(
                f"{name} is not text: it has zero bytes, as programs, pictures and UTF-16 without a byte-order mark "
                "do; give txt, md, html, pdf or docx"
            )
        text = rest + text
        end = text.rfind("\n") + 1 or len(text)
        rest = text[end:]
        if end:
            yield Part(text[:end], read)
        data = file.read(PART_BYTES)
    try:
        rest += decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_text(name, encoding, error, read - len(error.object)) from error
    if rest:
        yield Part(rest, read)


def _not_text(name: str, encoding: str, error: UnicodeDecodeError, before: int) -> DocumentError:
    kind = encoding.removesuffix("-le").removesuffix("-be").upper()
    return DocumentError(
        f"{name} is not {kind} text: byte 0x{error.object[error.start]:02X} at position {before + error.start:,}; "
        "convert it to UTF-8, or give txt, md, html, pdf or docx"
    )
