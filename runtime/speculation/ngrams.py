"""Which id mostly follows one to four others in the model's own answers, and drafts from that.

In: finished answers; the ids of a running text. Out: ids that may come next. Knows nothing about files, models or
tokenizers.

Where the last four ids are not in the table, the last three are looked for, then two, then one, as in the n-gram drafts
of ANPD (Ou et al. 2024). Contexts are kept as hashes of 32 bits: with 300,000 of them, one wrong hit in 14,000,
which costs a draft and changes no answer.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from edge.runtime.settings import Sampling
from edge.runtime.speculation.source import Proposal
from edge.runtime.speculation.suffix_array import MAX_ID

LONGEST = 4  # ids of a context
LEVELS = 8  # of the share that the most frequent follower has
MAX_ENTRIES = 1_000_000  # 8 bytes each
MOST_IDS = 200_000  # of the model's own answers
_LEAST_NEW = 200  # ids that are worth counting again
_LEAST_OF_LONG = 2  # times that a context of three or four ids must have been followed alike
_FACTOR, _MASK = 0x9E3779B1, 0xFFFFFFFF
_HEADER = struct.Struct(f"<8s{LONGEST}I")
_MAGIC = b"EDGENGR1"

# By the follower's share of what was counted, 0 to 1 in eighths: how often it was right in sampled answers to others'
# questions.
_PRIORS = (0.03, 0.1, 0.12, 0.15, 0.15, 0.25, 0.5, 0.7)

Hashes = npt.NDArray[np.uint64]


class NgramTable:
    """Followers of contexts of 1 to 4 ids."""

    def __init__(self, content: bytes, num_ids: int) -> None:
        """Raises ValueError for bytes that are not a table of `num_ids` token ids."""
        if len(content) < _HEADER.size or not content.startswith(_MAGIC):
            raise ValueError("it is no table of n-grams")
        sizes = _HEADER.unpack_from(content)[1:]
        if len(content) != _HEADER.size + 8 * sum(sizes):
            raise ValueError(f"it has {len(content)} bytes, expected {_HEADER.size + 8 * sum(sizes)}")
        self._orders: list[tuple[memoryview, memoryview]] = []  # hashes, and follower << 3 | level, by length
        at = _HEADER.size
        for size in sizes:
            hashes, followers = np.frombuffer(content, "<u4", 2 * size, at).astype(np.uint32).reshape(2, size)
            if size and int(followers.max()) >> 3 >= num_ids:
                raise ValueError(f"it holds token id {int(followers.max()) >> 3}, expected 0 to {num_ids - 1}")
            self._orders.append((hashes.data, followers.data))
            at += 8 * size

    def __len__(self) -> int:
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

    def __init__(self, earlier: Sequence[Sequence[int]] = ()) -> None:
        """earlier: sequences of ids, oldest first."""
        self._texts: deque[Sequence[int]] = deque()
        self._size = self._counted = 0
        self.table: NgramTable | None = None
        for ids in earlier:
            self._keep(ids)
        self._count()

    def learn(self, ids: Sequence[int]) -> None:
        """Draft from a text, too, soon."""
        self._keep(ids)
        if self._size >= self._counted + max(self._counted // 4, _LEAST_NEW) or self._size >= MOST_IDS:
            self._count()

    def source(self, prompt_ids: Sequence[int], sampling: Sampling) -> NgramSource:  # noqa: ARG002 it is any text's
        return NgramSource(self)

    def close(self) -> None:
        """Free the memory."""
        self._texts.clear()
        self.table = None

    def _keep(self, ids: Sequence[int]) -> None:
        self._texts.append(np.array(ids[-MOST_IDS:], np.uint32))
        self._size += len(self._texts[-1])

    def _count(self) -> None:
        if self._size >= MOST_IDS:  # the older half goes, so that counting stays rare
            while self._size > MOST_IDS // 2:
                self._size -= len(self._texts.popleft())
        if self._size:
            self.table = NgramTable(count_ngrams(self._texts), MAX_ID + 1)
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

    def cost_ms(self, count: int) -> float:  # noqa: ARG002 nothing, for any
        return 0.0

    def propose(self, count: int, forced: Sequence[int] = ()) -> Proposal | None:
        table, text = self._ngrams.table, [*self._tail, *forced]
        ids: list[int] = []
        buckets: list[int] = []
        while table is not None and len(ids) < count:
            found = table.follower(text[-LONGEST:])
            if found is None:
                break
            ids.append(found[0])
            buckets.append(found[1])
            text.append(found[0])
        return Proposal(ids, buckets) if ids else None

    def close(self) -> None:
        pass


def count_ngrams(sequences: Iterable[Sequence[int]]) -> bytes:
    """Return the table of what follows what in these sequences, the same bytes for the same ids."""
    ids = [np.array(sequence, np.uint64) for sequence in sequences]
    orders = [_followers(ids, length) for length in range(1, LONGEST + 1)]
    excess = sum(hashes.size for hashes, _, _ in orders) - MAX_ENTRIES
    for i in range(LONGEST - 1, -1, -1):  # the longest and rarest go first
        if excess > 0:
            hashes, packed, counts = orders[i]
            keep = np.sort(np.argsort(counts, kind="stable")[min(excess, counts.size) :])
            excess -= hashes.size - keep.size
            orders[i] = hashes[keep], packed[keep], counts[keep]
    parts = [_HEADER.pack(_MAGIC, *(hashes.size for hashes, _, _ in orders))]
    parts += [part.astype("<u4").tobytes() for hashes, packed, _ in orders for part in (hashes, packed)]
    return b"".join(parts)


def _followers(sequences: list[Hashes], length: int) -> tuple[Hashes, Hashes, npt.NDArray[np.int64]]:
    """Return hashes of contexts, ascending; the follower of each with its level; and how often it followed."""
    pairs = [_pairs(ids, length) for ids in sequences if ids.size > length]
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
    return contexts[best], followers, counts[best]


def _pairs(ids: Hashes, length: int) -> Hashes:
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
