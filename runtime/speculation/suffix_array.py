"""Ids sorted by what follows them: which ids stand behind a given few, and which of them most often?

In: ids in one array, with a separator behind each sequence; ids to look for. Out: the order of all suffixes; later,
what followed the longest known suffix of some ids. Knows nothing about files, sessions or tokenizers.

An id stands as id + 1 in 4 bytes, big-endian, so that comparing bytes compares ids; 0 is the separator.
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_left

import numpy as np
import numpy.typing as npt

from edge.runtime.settings import MAX_DRAFT, MAX_MATCH

SORTED = MAX_MATCH + MAX_DRAFT  # ids by which suffixes are sorted
MAX_ID = 2**31 - 2
_SAMPLE = 64  # occurrences that vote on what follows
_SCATTERED = 8  # where less than one of so many occurrences is still in agreement, the draft ends

StoredIds = npt.NDArray[np.integer]  # (n,), as they are stored: each id + 1, big-endian


class SuffixArray:
    """What stands in a buffer: from byte `begin` on `num_ids` ids, with SORTED separators at the end, then their order.

    The buffer may be a mapped file: only what a search looks at is read.
    """

    def __init__(self, content: mmap.mmap | bytes, begin: int, num_ids: int, num_tokens: int = MAX_ID + 1) -> None:
        """Raises ValueError where the buffer holds something else, or an id of `num_tokens` or above."""
        if num_ids < SORTED:
            raise ValueError(f"it has {num_ids} ids, expected at least the {SORTED} separators at the end")
        self._content = content
        self._begin = begin
        self._ids: StoredIds = np.frombuffer(content, ">u4", num_ids, begin)
        suffixes = np.frombuffer(content, "<i4", -1, begin + 4 * num_ids)
        self.order = suffixes.astype(np.int32, copy=False)  # (n,) int32
        self._check(num_tokens)
        self._order_view = self.order.data  # a list's speed and an array's size

    def _check(self, num_tokens: int) -> None:
        """Raise ValueError for what would lead a search out of the buffer, or to ids that no model has.

        O(n), less than reading it. Whether the order is one is not looked at: else a search finds less, nothing else.
        """
        order, end = self.order, self._ids.size - SORTED
        if self._ids[max(end - 1, 0) :].any():
            raise ValueError("its last sequence has no separators behind it")
        if (largest := int(self._ids.astype(np.uint32).max())) > num_tokens:
            raise ValueError(f"it holds token id {largest - 1}, expected 0 to {num_tokens - 1}")
        if order.size and not 0 <= int(order.min()) <= int(order.max()) < end:
            raise ValueError("its order leads outside of its ids")

    def sequences(self) -> list[StoredIds]:
        """All sequences, in the order they were stored in, as they are stored."""
        ends = np.flatnonzero(self._ids == 0)[: -SORTED or None]
        begins = [0, *(ends[:-1] + 1).tolist()]
        return [self._ids[begin:end] for begin, end in zip(begins, ends.tolist(), strict=False)]

    def draft(self, tail: list[int], count: int, shortest: int) -> tuple[int, list[int]]:
        """What followed the longest suffix of `tail` that is stored and has an id behind it: its length, and the ids.

        The suffix has at least `shortest` ids; (0, []) without one. Every id drafted is the one that most of the
        occurrences still in agreement have next, the later stored one where two are equally many, until fewer than an
        eighth agree; of more than 64 occurrences as many, evenly spread in their order, vote.
        """
        stored = np.array(tail, np.int64) + 1
        if len(tail) < shortest or int(stored.min()) < 1 or int(stored.max()) > MAX_ID + 1:
            return 0, []
        pattern = stored.astype(">u4").tobytes()
        length, first = 0, 0
        low, high = shortest, len(tail)
        probe = low  # most tails are not there at all: ask for the shortest first
        while low <= high:
            at = self._first(pattern[-4 * probe :])
            if at is None:
                high = probe - 1
            else:
                length, first, low = probe, at, probe + 1
            probe = (low + high + 1) // 2
        if not length:
            return 0, []
        # The end of the range is where the suffixes that begin with the last id + 1 in its place begin.
        beyond = pattern[-4 * length : -4] + struct.pack(">I", int(stored[-1]) + 1)
        end = max(self._bisect(beyond, first), first + 1)
        return length, self._most_frequent(first, end, length, count)

    def _bisect(self, key: bytes, low: int = 0) -> int:
        """Where the suffixes from `key` on begin."""
        content, begin, size = self._content, self._begin, len(key)
        return bisect_left(self._order_view, key, low, key=lambda at: content[begin + 4 * at : begin + 4 * at + size])

    def _first(self, pattern: bytes) -> int | None:
        """Where the suffixes begin that start with `pattern` and have an id behind it; None without one."""
        found = self._bisect(pattern + b"\0\0\0\1")
        if found == len(self._order_view):
            return None
        begin = self._begin + 4 * self._order_view[found]
        return found if self._content[begin : begin + len(pattern)] == pattern else None

    def _most_frequent(self, first: int, end: int, length: int, count: int) -> list[int]:
        """The ids behind the first `length` ones of suffixes first..end, chosen one by one as most of them have it."""
        if end - first > _SAMPLE:
            begins = self.order[np.linspace(first, end - 1, _SAMPLE).astype(np.int64)].astype(np.int64) + length
        else:
            begins = self.order[first:end].astype(np.int64) + length
        drafted: list[StoredIds] = []
        done, voters = 0, begins.size
        while True:
            # Suffixes are in order, so what the first and the last of them share all share.
            a = self._ids[begins[0] + done : begins[0] + count]
            b = self._ids[begins[-1] + done : begins[-1] + count]
            apart = np.flatnonzero((a != b) | (a == 0))
            shared = int(apart[0]) if apart.size else count - done
            drafted.append(a[:shared])
            done += shared
            if done == count:
                break
            following = self._ids[begins + done]
            ended = int(np.searchsorted(following, 1))  # where a sequence ends, its separator sorts first
            if ended == begins.size:
                break
            begins, following = begins[ended:], following[ended:]
            edges = np.flatnonzero(np.concatenate(([True], following[1:] != following[:-1], [True])))
            votes = np.diff(edges)
            winners = np.flatnonzero(np.repeat(votes == votes.max(), votes))
            latest = winners[begins[winners].argmax()]
            group = int(np.searchsorted(edges, latest, "right")) - 1
            begins = begins[edges[group] : edges[group + 1]]
            if begins.size * _SCATTERED < voters:
                break
        ids: list[int] = (np.concatenate(drafted).astype(np.int64) - 1).tolist()
        return ids


def suffix_array(ids: StoredIds) -> npt.NDArray[np.int32]:
    """Where the suffixes of `ids` (0 is a separator) that begin with an id begin, by at least their first 64 ids. (n,)

    Prefix doubling (Manber and Myers 1990) that sorts again only what is not yet alone in its place (Larsson and
    Sadakane 1999). Beyond the sorted ids the order is arbitrary.
    """
    size = ids.size
    if not size:
        return np.zeros(0, np.int32)
    values, rank = np.unique(ids, return_inverse=True)
    # As many ids as fit into 62 bits begin the doubling.
    bits = max(int(values.size).bit_length(), 1)
    depth = max(min(62 // bits, 4), 1)
    key = np.zeros(size, np.int64)
    for i in range(min(depth, size)):
        key <<= bits
        key[: size - i] |= rank[i:] + 1
    order = np.argsort(key, kind="stable")
    key = key[order]
    group = np.zeros(size, np.int64)  # of each suffix, where its group begins in the order
    places = np.arange(size)
    edge = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
    while True:
        counts = np.diff(np.append(edge, places.size))
        group[order[places]] = np.repeat(places[edge], counts)
        places = places[np.repeat(counts > 1, counts)]
        if depth >= SORTED or not places.size:
            break
        suffixes = order[places]
        further = suffixes + depth
        behind = np.where(further < size, group[np.minimum(further, size - 1)] + 1, 0)
        key = (group[suffixes] << 32) | behind
        new = np.argsort(key, kind="stable")
        order[places] = suffixes[new]
        key = key[new]
        edge = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
        depth *= 2
    sorted_ids: npt.NDArray[np.int32] = order[ids[order] != 0].astype(np.int32)
    return sorted_ids
