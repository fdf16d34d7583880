"""The documents of a command line: the option for them, and what is said about each on stderr.

In: paths, and a loaded model with the rest of the prompt. Out: documents that fit the context. Knows no format.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.commands import kinds, options

if TYPE_CHECKING:
    from edge.documents import Document
    from edge.runtime.llm import LLM
    from edge.runtime.messages import MessageLike

TOKENS_PER_PAGE = 500  # roughly
MAX_EXPECTED = 1_000_000  # tokens; no context has more
_MOST_NUMBERS = 10  # of pages in a line


def add_documents(parser: argparse._ActionsContainer, question: str = "PROMPT") -> None:
    """Files that a question is about."""
    parser.add_argument(
        "--file",
        action="append",
        default=[],
        type=kinds.path,
        dest="files",
        metavar="FILE",
        help=f"a document that {question} is about: txt, md, html, pdf or docx; repeatable",
    )


def check_documents(args: argparse.Namespace) -> int:
    """Look at each file before a model is loaded; return about how many tokens they have, for the choice of an engine.

    Raises DocumentError and MissingPackageError.
    """
    if not args.files:
        return 0
    from edge.documents.reader import open_document

    tokens = 0
    for path in args.files:
        with open_document(path) as source:
            tokens += TOKENS_PER_PAGE * source.pages if source.pages else source.total // options.BYTES_PER_TOKEN
    return min(tokens, MAX_EXPECTED)


def read_documents(
    args: argparse.Namespace, llm: LLM, question: str = "", before: Sequence[MessageLike] = ()
) -> list[Document]:
    """The files of `--file`, counted against what a context has left. Errors as in `read_paths`.

    question: comes after them in the same message. before: earlier messages.
    """
    if not args.files:
        return []
    from edge.documents.document import after

    around = after(len(args.files), question)
    taken = len(llm.encode_chat([*before, {"role": "user", "content": around}]))
    documents = read_paths(args.files, llm, taken=taken, max_new_tokens=args.max_new_tokens)
    if getattr(args, "draft_store", None):
        for document in documents:
            llm.add_document(document.text)
    return documents


def read_paths(paths: Sequence[str], llm: LLM, *, taken: int = 0, max_new_tokens: int | None = None) -> list[Document]:
    """Read files that fit a model's context, and tell the size of each on stderr.

    taken: tokens of all else that the prompt holds. Raises DocumentError, MissingPackageError and ContextLengthError.
    """
    from edge.documents.room import Room, distinct

    room, found = Room(llm, taken, max_new_tokens), []
    names = distinct(paths)
    for path, name in names.items():
        fitted = room.read(path, name)
        found.append(fitted.document)
        pages = "" if fitted.document.pages is None else f"{_counted(fitted.document.pages, 'page')}, "
        print(f"{name}: {pages}{fitted.tokens:,} of {room.context:,} tokens", file=sys.stderr)
        if fitted.document.without_text:
            print(_without_text(fitted.document), file=sys.stderr)
    if len(names) < len(paths):
        print(f"edge: {_counted(len(paths) - len(names), 'file')} given more than once, read once", file=sys.stderr)
    return found


def _without_text(document: Document) -> str:
    pages = document.without_text
    numbers = ", ".join(map(str, pages[:_MOST_NUMBERS])) + (", …" if len(pages) > _MOST_NUMBERS else "")
    of = f"{len(pages):,} of {_counted(document.pages or 0, 'page')}"
    return f"edge: {document.name}: {of} without text that can be read ({numbers}); pictures and scans are not read"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
