"""Documents as windows of tokens, all of one length.

In: documents, a tokenizer, a chat template for documents that are messages. Out: `Windows`. Knows nothing about where
documents come from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge.export.text.documents import Document
from edge.runtime.errors import CalibrationError

if TYPE_CHECKING:
    from edge.runtime.chat import ChatTemplate
    from edge.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Windows:
    """Runs of tokens, all of the same length, each in one language."""

    ids: npt.NDArray[np.int64]  # (n, length)
    languages: tuple[str, ...]  # n labels

    @property
    def count(self) -> int:
        """Number of windows."""
        return int(self.ids.shape[0])

    @property
    def length(self) -> int:
        """Tokens in one window."""
        return int(self.ids.shape[1])

    @property
    def num_tokens(self) -> int:
        """Tokens in all windows."""
        return int(self.ids.size)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the ids and their shape, which identifies what was computed for these windows."""
        digest = hashlib.sha256(json.dumps(list(self.ids.shape)).encode())
        digest.update(np.ascontiguousarray(self.ids, "<i8").data)
        return digest.hexdigest()


def token_windows(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    length: int,
    count: int,
    template: ChatTemplate | None = None,
) -> Windows:
    """`count` windows of `length` tokens, spread over the whole text, languages taking turns.

    Documents in one language are joined by newlines. A language with too little text leaves its turns to the others. No
    token is added: a window has special tokens only where the text or the template has them. Raises CalibrationError
    when the text is too short.
    """
    if length < 1 or count < 1:
        raise CalibrationError(f"{count} windows of {length} tokens were asked for, expected 1 or more of each")
    texts: dict[str, list[str]] = {}
    for document in documents:
        texts.setdefault(document.language, []).append(document.rendered(template))
    ids = {language: np.array(tokenizer.encode("\n".join(parts)), np.int64) for language, parts in texts.items()}
    turns = _turns({language: of_language.size // length for language, of_language in ids.items()}, count)
    if len(turns) < count:
        found = ", ".join(f"{of_language.size:,} ({language})" for language, of_language in ids.items()) or "0"
        raise CalibrationError(
            f"the text has {found} tokens, enough for {len(turns)} windows of {length}, and {count} windows were asked "
            "for; give more text, or ask for fewer or shorter windows"
        )
    starts = {
        language: iter(np.arange(turns.count(language)) * of_language.size // max(turns.count(language), 1))
        for language, of_language in ids.items()
    }
    rows = [ids[language][(start := next(starts[language])) : start + length] for language in turns]
    return Windows(np.stack(rows), tuple(turns))


def _turns(capacity: Mapping[str, int], count: int) -> list[str]:
    """The language of each window: they take turns as long as they have text for another window."""
    rounds = range(max(capacity.values(), default=0))
    fair = chain.from_iterable((name for name, windows in capacity.items() if windows > turn) for turn in rounds)
    return [name for _, name in zip(range(count), fair, strict=False)]
