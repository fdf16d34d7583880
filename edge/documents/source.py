"""An open document that gives its text part after part, so that a reader can stop before the end.

In: an iterator of parts, made by the reader of one format. Out: a `Document`, or whatever the caller raises meanwhile.
Knows no format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import BinaryIO, Self

from edge.documents.document import Document
from edge.runtime.errors import DocumentError
from edge.runtime.tokenizer import MAX_TEXT


@dataclass(frozen=True)
class Part:
    """A piece of a document's text, with all that separates it from the next. read: units of the source so far."""

    text: str
    read: int


@dataclass
class Source:
    """A document while it is read.

    parts: to be read once. total, unit: how much there is to read, like 300 "pages" or 4,096 "bytes"; formats that are
    parsed as a whole begin with bytes. pages: None for formats without pages. without_text: filled while it is read.
    """

    name: str
    file: BinaryIO
    parts: Iterator[Part]
    total: int
    unit: str
    pages: int | None = None
    without_text: list[int] = field(default_factory=list)

    def read(self, take: Callable[[Part], None] | None = None) -> Document:
        """Return the whole document. take: called with each part, and may raise to end the reading.

        Raises DocumentError, also for more text than any tokenizer here takes.
        """
        texts: list[str] = []
        length = 0
        for part in self.parts:
            length += len(part.text)
            if length > MAX_TEXT:
                raise DocumentError(
                    f"{self.name} has more than {MAX_TEXT:,} characters of text ({self.progress(part)}); give a part "
                    "of it"
                )
            if take is not None:
                take(part)
            texts.append(part.text)
        return Document(self.name, "".join(texts), self.pages, tuple(self.without_text))

    def progress(self, part: Part) -> str:
        """Return how far a part ends, in words."""
        return f"{part.read:,} of its {self.total:,} {self.unit} read"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def separated(parts: Iterator[Part]) -> Iterator[Part]:
    """Put an empty line between parts, as the official demo does. It ends a part, where tokenizers tend to cut."""
    before: Part | None = None
    for part in parts:
        if before is not None:
            yield replace(before, text=f"{before.text}\n\n")
        before = part
    if before is not None:
        yield before
