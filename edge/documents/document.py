"""What a document is once it was read, and how documents and a question make one message.

In: names and texts. Out: a message for a user's turn. Knows nothing about files or their formats.

The layout is that of the long-document mode of GLM-4's official demo, to the character: FILE_TEMPLATE of THUDM/GLM-4
composite_demo/src/conversation.py at commit aa6c942c19d656c6cffed7392607d8e3e9b0b748, and the way main.py of the same
folder at commit 293ca3b83421a3f548b56fcbddf7c1e421cb26df joins documents (by an empty line) and ends them (by two empty
lines and "N files uploaded.", also for one) before the stripped question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

JOINT = "\n\n"  # between documents


@dataclass(frozen=True)
class Document:
    """The text of a file.

    name: how the message names it. pages: how many it has, None for formats without pages. without_text: the numbers,
    from 1, of pages that gave no text, as scans and pictures do.
    """

    name: str
    text: str
    pages: int | None = None
    without_text: tuple[int, ...] = ()


def heading(name: str) -> str:
    """Return what the layout puts before a document's text."""
    return f"[File Name]\n{name}\n[File Content]\n"


def after(count: int, question: str) -> str:
    """Return what the layout puts after all `count` documents."""
    return f"\n\n\n{count} files uploaded.\n{question.strip()}"


def prompt_with(documents: Sequence[Document], question: str) -> str:
    """Return one message: the documents, how many they are, and the question; without documents, the question alone."""
    if not documents:
        return question
    files = JOINT.join(heading(document.name) + document.text for document in documents)
    return files + after(len(documents), question)
