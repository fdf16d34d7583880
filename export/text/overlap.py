"""Whether two texts share passages: text that a model was fitted to says nothing about how well it does.

In: documents to calibrate with and to measure by. Out: nothing, or an error that shows the passage they share. Knows
nothing about where documents come from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge.export.text.documents import Document
from edge.runtime.errors import CalibrationError

if TYPE_CHECKING:
    pass

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
    shingles = _Shingles([document.text for document in calibration], words)
    for document in evaluation:
        if (passage := shingles.find(document.text)) is not None:
            common = " ".join(passage[:SHOWN_WORDS]) + (" ..." if len(passage) > SHOWN_WORDS else "")
            where = f" ({document.origin})" if document.origin else ""
            raise CalibrationError(
                f"calibration and evaluation text{where} share {words} words in a row: {common!r}; figures measured "
                "with it would be too good, take the passage out of one of them"
            )


class _Shingles:
    """All runs of `words` words of some texts, hashed; tells whether another text holds one of them.

    A polynomial hash modulo 2^64 of every run at once, from prefix sums: h[i] = sum_j code[i + j] * BASE^j. BASE is odd
    and so has an inverse. What the hash finds is compared word by word.
    """

    BASE = np.uint64(0x9E3779B97F4A7C15)
    INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))

    def __init__(self, texts: Sequence[str], words: int) -> None:
        self._words = words
        self._texts = [_WORD.findall(text) for text in texts]
        self._codes: dict[str, int] = {}
        hashes = [self._hashes(text) for text in self._texts]
        sizes = [of_text.size for of_text in hashes]
        joined = np.concatenate([np.zeros(0, np.uint64), *hashes])
        order = np.argsort(joined, kind="stable")
        self._sorted = joined[order]
        self._text_of = np.repeat(np.arange(len(sizes)), sizes)[order]
        self._place_of = np.concatenate([np.zeros(0, np.int64), *(np.arange(size) for size in sizes)])[order]

    def find(self, text: str) -> list[str] | None:
        """The first passage of `text`, in words and as long as it goes on, that is in the texts as well."""
        words = _WORD.findall(text)
        hashes = self._hashes(words)
        first = np.searchsorted(self._sorted, hashes, "left")
        last = np.searchsorted(self._sorted, hashes, "right")
        for start in np.flatnonzero(last > first).tolist():
            run = words[start : start + self._words]
            for hit in range(first[start], last[start]):
                theirs, place = self._texts[self._text_of[hit]], int(self._place_of[hit])
                if theirs[place : place + self._words] == run:
                    both = zip(words[start:], theirs[place:], strict=False)
                    return [word for word, _ in takewhile(lambda pair: pair[0] == pair[1], both)]
        return None

    def _hashes(self, words: list[str]) -> npt.NDArray[np.uint64]:
        """(len(words) - self._words + 1,), or empty."""
        if len(words) < self._words:
            return np.zeros(0, np.uint64)
        codes = np.array([self._codes.setdefault(word, len(self._codes)) for word in words], np.uint64)
        codes = (codes + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)  # spread over 64 bits (splitmix64's multiplier)
        codes ^= codes >> np.uint64(31)
        powers = _powers(self.BASE, len(words))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes * powers)])
        runs: npt.NDArray[np.uint64] = sums[self._words :] - sums[: -self._words]
        runs *= _powers(self.INVERSE, runs.size)
        return runs


def _powers(base: np.uint64, count: int) -> npt.NDArray[np.uint64]:
    """base^0, base^1, ... modulo 2^64."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    np.multiply.accumulate(powers, out=powers)
    return powers
