"""Text that comes with Python, as a bundle's tokenizer reads it.

In: a bundle's folder and a number of tokens. Out: token ids of CPython's documentation (pydoc_data.topics).
"""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

from edge.runtime.bundle import TOKENIZER, open_bundle
from edge.runtime.tokenizer import Tokenizer


def tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer of a bundle."""
    path = open_bundle(folder).file(TOKENIZER)
    assert path is not None
    return Tokenizer(path)


def text_ids(folder: Path, count: int, skipped: int = 0) -> list[int]:
    """Ids of CPython's documentation."""
    text = "\n".join(topics[name] for name in sorted(topics))
    return tokenizer_of(folder).encode(text[: 8 * (skipped + count)])[skipped : skipped + count]
