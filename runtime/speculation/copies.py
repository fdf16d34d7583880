"""Drafts that are copied: from the prompt and the answer so far, and from stored texts.

In: the ids of a running text. Out: what followed its latest ids before. Knows nothing about models or the policy.

The first is prompt lookup decoding (Saxena 2023), the second is REST (He et al. 2023). How often such ids are right
depends on how many before them match, much as SuffixDecoding (Oliaro et al. 2024) has it.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge.runtime.settings import MAX_MATCH
from edge.runtime.speculation.automaton import SuffixAutomaton
from edge.runtime.speculation.source import Proposal
from edge.runtime.speculation.store import DraftStore

# Match lengths 1, 2, 3-4, 5-8, 9-16, 17 and more: the bucket of each, and the initial chance that the next id is right.
# In most texts, short matches are accidental; a long one is a copy.
_BUCKET = (0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 5)
PRIORS = (0.03, 0.1, 0.4, 0.75, 0.9, 0.96)


def buckets(match_length: int, count: int) -> list[int]:
    """Return those of `count` ids after a match of this length (1 or more), which grows with every id."""
    top = len(_BUCKET) - 1
    return [_BUCKET[min(match_length + i, top)] for i in range(count)]


class TextSource:
    """What followed in the running text itself: a `DraftSource`."""

    name = "text"
    priors: Sequence[float] = PRIORS

    def __init__(self, min_match: int) -> None:
        """min_match: ids that a suffix must have for a draft."""
        self._min_match = min_match
        self._text = SuffixAutomaton()
        self._new: list[int] = []  # not indexed yet, which takes 3 µs each: the first token does not wait for it

    def extend(self, ids: Sequence[int]) -> None:
        self._new += ids

    def costs_ms(self, most: int) -> Sequence[float]:  # noqa: ARG002 nothing, for any
        return ()

    def propose(self, count: int, forced: Sequence[int] = ()) -> Proposal | None:
        self._text.extend(self._new)
        self._new = []
        if forced:
            length, ids = self._text.find([*self._text.tail(MAX_MATCH), *forced][-MAX_MATCH:], count)
        else:
            length, ids = self._text.draft(count)
        return _proposal(length, ids, self._min_match)

    def close(self) -> None:
        pass


class StoreSource:
    """What followed in the texts of a store: a `DraftSource`."""

    name = "store"
    priors: Sequence[float] = PRIORS

    def __init__(self, store: DraftStore, min_match: int) -> None:
        self._store, self._min_match = store, min_match
        self._tail: list[int] = []

    def extend(self, ids: Sequence[int]) -> None:
        self._tail = [*self._tail, *ids[-MAX_MATCH:]][-MAX_MATCH:]

    def costs_ms(self, most: int) -> Sequence[float]:  # noqa: ARG002 nothing, for any
        return ()

    def propose(self, count: int, forced: Sequence[int] = ()) -> Proposal | None:
        length, ids = self._store.draft([*self._tail, *forced], count)
        return _proposal(length, ids, self._min_match)

    def close(self) -> None:
        pass


def _proposal(length: int, ids: list[int], min_match: int) -> Proposal | None:
    return Proposal(ids, buckets(length, len(ids))) if ids and length >= min_match else None
