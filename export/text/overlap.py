"""Whether two texts share passages: text that a model was fitted to says nothing about how well it does.

In: documents to calibrate with and to measure by. Out: nothing, or an error that shows the passage they share. Knows
nothing about where documents come from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice, takewhile

import numpy as np
import numpy.typing as npt

from edge.export.text.documents import Document
from edge.runtime.errors import CalibrationError, in_words

SHARED_WORDS = 40  # that calibration and evaluation text may not have in common, in a row
SHOWN_WORDS = 30  # of a passage, in a message
# A word is a run of characters without space; where a script has no spaces, one character of it.
_WORD = re.compile(
    r"[\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|[^\s\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


def check_apart(calibration: Sequence[Document], evaluation: Sequence[Document], words: int = SHARED_WORDS) -> None:
    """Raises CalibrationError, with the passage, when the two have `words` words in a row in common.

    A model that was compressed with the very text it is measured by looks better than it is. White space does not
    count; a Chinese or Japanese character is a word.
    """
    runs = Runs([document.text for document in calibration], words)
    for document in evaluation:
        if (passage := runs.find(document.text)) is not None:
            common = " ".join(passage[:SHOWN_WORDS]) + (" ..." if len(passage) > SHOWN_WORDS else "")
            where = f" ({document.origin})" if document.origin else ""
            raise CalibrationError(
                f"calibration and evaluation text{where} share {words} words in a row: {in_words(common)!r}; figures "
                "measured with it would be too good, take the passage out of one of them"
            )


class Runs:
    """All runs of `words` words in some texts; tells whether another text holds one of them.

    Only their hashes are kept, 8 bytes a word. What a hash finds is compared word by word.
    """

    def __init__(self, texts: Sequence[str], words: int) -> None:
        self._texts = texts
        self._words = words
        self._sorted = np.sort(np.concatenate([np.zeros(0, np.int64), *(self._hashes(_split(text)) for text in texts)]))

    def find(self, text: str) -> list[str] | None:
        """The first passage of `text` that is in the texts as well, as words and as long as the two agree."""
        words = _split(text)
        hashes = self._hashes(words)
        first = np.searchsorted(self._sorted, hashes, "left")
        last = np.searchsorted(self._sorted, hashes, "right")
        for start in np.flatnonzero(last > first).tolist():
            run = words[start : start + self._words]
            for theirs in map(_split, self._texts):
                for place in range(len(theirs) - self._words + 1):
                    if theirs[place : place + self._words] == run:
                        both = zip(words[start:], theirs[place:], strict=False)
                        return [word for word, _ in takewhile(lambda pair: pair[0] == pair[1], both)]
        return None

    def _hashes(self, words: list[str]) -> npt.NDArray[np.int64]:
        """(len(words) - self._words + 1,), or empty."""
        runs = zip(*(islice(words, skipped, None) for skipped in range(self._words)), strict=False)
        return np.fromiter(map(hash, runs), np.int64)


def _split(text: str) -> list[str]:
    return _WORD.findall(text)
