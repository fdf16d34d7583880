"""Which id mostly follows one to four others in the model's own answers, and drafts from that.

In: finished answers; the ids of a running text. Out: ids that may come next. Knows nothing about files, models or
tokenizers.

Where the last four ids are not in the table, the last three are looked for, then two, then one, as in the n-gram drafts
of ANPD (Ou et al. 2024). Contexts are kept as hashes of 32 bits: with 300,000 of them, one wrong hit in 14,000,
which costs a draft and changes no answer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from edge.runtime.settings import Sampling
from edge.runtime.speculation.source import Proposal

LONGEST = 4  # ids of a context
LEVELS = 8  # of the share that the most frequent follower has
FEW = 6  # ids that are drafted at once: what follows so many guesses is seldom right
MOST_IDS = 200_000  # of the model's own answers
_LEAST_NEW = 200  # ids that are worth counting again
_LEAST_OF_LONG = 2  # times that a context of three or four ids must have been followed alike
_FACTOR, _MASK = 0x9E3779B1, 0xFFFFFFFF

# By the follower's share of what was counted, 0 to 1 in eighths: how often it was right in sampled answers to others'
# questions.
_PRIORS = (0.03, 0.1, 0.12, 0.15, 0.15, 0.25, 0.5, 0.7)

Ids = npt.NDArray[np.uint64]
Text = Sequence[int] | npt.NDArray[np.integer]


class NgramTable:
    """Followers of contexts of 1 to 4 ids, 8 bytes for each context."""

    def __init__(self, texts: Iterable[Text]) -> None:
        """texts: of ids below 2²⁹."""
        ids = [np.array(text, np.uint64) for text in texts]
        self._orders = [_followers(ids, length) for length in range(1, LONGEST + 1)]

    def __len__(self) -> int:
        """How many contexts it knows."""
        return sum(len(hashes) for hashes, _ in self._orders)

    def follower(self, tail: Sequence[int]) -> tuple[int, int] | None:
        """Return the id that mostly followed the longest known end of `tail`, and its level; None without one."""
        for length in range(min(len(tail), LONGEST), 0, -1):
            hashes, followers = self._orders[length - 1]
            key = _hash(tail[-length:])
            at = bisect_left(hashes, key)
            if at < len(hashes) and hashes[at] == key:
                found: int = followers[at]
                return found >> 3, found & (LEVELS - 1)
        return None


class Ngrams:
    """What the model's own answers taught, for all answers of one model: a `SourceMaker`.

    Answers are counted again when a quarter more of them has come, 0.2 s for the most that are kept.
    """

    def __init__(self, earlier: Sequence[Text] = ()) -> None:
        """earlier: sequences of ids, oldest first."""
        self._texts: deque[Text] = deque()
        self._size = self._counted = 0
        self.table: NgramTable | None = None
        for ids in earlier:
            self._keep(ids)
        self._count()

    def learn(self, ids: Text) -> None:
        """Draft from a text, too, soon."""
        self._keep(ids)
        if self._size >= self._counted + max(self._counted // 4, _LEAST_NEW) or self._size >= MOST_IDS:
            self._count()

    def source(self, prompt_ids: Sequence[int], sampling: Sampling) -> NgramSource:  # noqa: ARG002 it is any text's
        return NgramSource(self)

    def interrupt(self, *, final: bool) -> None:
        pass

    def close(self) -> None:
        """Free the memory."""
        self._texts.clear()
        self.table = None

    def _keep(self, ids: Text) -> None:
        self._texts.append(np.array(ids[-MOST_IDS:], np.uint32))
        self._size += len(self._texts[-1])

    def _count(self) -> None:
        if self._size >= MOST_IDS:  # the older half goes, so that counting stays rare
            while self._size > MOST_IDS // 2:
                self._size -= len(self._texts.popleft())
        if self._size:
            self.table = NgramTable(self._texts)
        self._counted = self._size


class NgramSource:
    """Drafts for one answer."""

    name = "ngrams"
    priors: Sequence[float] = _PRIORS

    def __init__(self, ngrams: Ngrams) -> None:
        self._ngrams = ngrams
        self._tail: list[int] = []

    def extend(self, ids: Sequence[int]) -> None:
        self._tail = [*self._tail, *ids[-LONGEST:]][-LONGEST:]

    def costs_ms(self, most: int) -> Sequence[float]:  # noqa: ARG002 nothing, for any
        return ()

    def propose(self, count: int, forced: Sequence[int] = ()) -> Proposal | None:
        table, text = self._ngrams.table, [*self._tail, *forced]
        ids: list[int] = []
        buckets: list[int] = []
        while table is not None and len(ids) < min(count, FEW):
            found = table.follower(text[-LONGEST:])
            if found is None:
                break
            ids.append(found[0])
            buckets.append(found[1])
            text.append(found[0])
        return Proposal(ids, buckets) if ids else None

    def close(self) -> None:
        pass


def _followers(texts: list[Ids], length: int) -> tuple[memoryview, memoryview]:
    """Return hashes of contexts, ascending, and the follower of each: its id << 3 | level.

    The same for the same texts, whatever their order. They are views, as numpy's own elements are slow to compare.
    """
    pairs = [_pairs(ids, length) for ids in texts if ids.size > length]
    keys, counts = np.unique(np.concatenate([*pairs, np.zeros(0, np.uint64)]), return_counts=True)
    contexts = keys >> np.uint64(32)
    first = np.flatnonzero(np.diff(contexts, prepend=np.uint64(1 << 40)))
    total = np.add.reduceat(counts, first) if first.size else counts[:0]
    order = np.lexsort((keys, -counts, contexts))  # of each context, the most frequent follower first
    best = order[first]
    if length > LONGEST - 2:
        kept = counts[best] >= _LEAST_OF_LONG
        best, total = best[kept], total[kept]
    levels = (LEVELS * counts[best] // (total + 1)).astype(np.uint64)
    followers = (keys[best] & np.uint64(_MASK)) << np.uint64(3) | levels
    return contexts[best].astype(np.uint32).data, followers.astype(np.uint32).data


def _pairs(ids: Ids, length: int) -> Ids:
    """Return hash << 32 | follower of every context of this length."""
    hashed = np.zeros(ids.size - length, np.uint64)
    for i in range(length):
        hashed = (hashed * np.uint64(_FACTOR) + ids[i : i + hashed.size] + np.uint64(1)) & np.uint64(_MASK)
    hashed ^= hashed >> np.uint64(15)
    return hashed << np.uint64(32) | ids[length:]


def _hash(ids: Sequence[int]) -> int:
    hashed = 0
    for token in ids:
        hashed = (hashed * _FACTOR + token + 1) & _MASK
    return hashed ^ hashed >> 15
