"""Ids sorted by what follows them: which ids follow a given few, and which of them most often?

In: ids in one array, with a separator after each sequence; ids to look for. Out: the order of all suffixes; later, what
followed the longest known suffix of some ids. Knows nothing about files, sessions or tokenizers.

An id is stored as id + 1 in 4 bytes, big-endian, so that comparing bytes compares ids; 0 is the separator.
"""

from __future__ import annotations

import struct
from bisect import bisect_left

import numpy as np
import numpy.typing as npt

from edge.runtime.settings import MAX_DRAFT, MAX_MATCH

SORTED = MAX_MATCH + MAX_DRAFT  # ids by which suffixes are sorted
MAX_ID = 2**31 - 2
_SAMPLE = 64  # occurrences that vote on what follows
_SCATTERED = 8  # the draft ends when less than one of this many occurrences is still in agreement

StoredIds = npt.NDArray[np.integer]  # (n,), as they are stored: each id + 1, big-endian


class SuffixArray:
    """A buffer that holds, from byte `begin` on, `num_ids` ids with SORTED separators at the end, then their order."""

    def __init__(self, content: bytes, begin: int, num_ids: int, num_tokens: int = MAX_ID + 1) -> None:
        """Raises ValueError if the buffer holds something else, or an id of `num_tokens` or above."""
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
        """Raise ValueError for content that would lead a search out of the buffer, or to ids that no model has.

        O(n), less than reading it. The order itself is not checked: a wrong one only makes searches find less.
        """
        order, end = self.order, self._ids.size - SORTED
        if self._ids[max(end - 1, 0) :].any():
            raise ValueError("its last sequence has no separators after it")
        if (largest := int(self._ids.astype(np.uint32).max())) > num_tokens:
            raise ValueError(f"it holds token id {largest - 1}, expected 0 to {num_tokens - 1}")
        if order.size and not 0 <= int(order.min()) <= int(order.max()) < end:
            raise ValueError("its order leads outside of its ids")

    def sequences(self) -> list[StoredIds]:
        """Return all sequences as they are stored, in their order."""
        ends = np.flatnonzero(self._ids == 0)[: -SORTED or None]
        begins = [0, *(ends[:-1] + 1).tolist()]
        return [self._ids[begin:end] for begin, end in zip(begins, ends.tolist(), strict=False)]

    def draft(self, tail: list[int], count: int, shortest: int) -> tuple[int, list[int]]:
        """Return the length of the longest stored suffix of `tail` with an id after it, and the ids that followed it.

        The suffix has at least `shortest` ids; (0, []) without one. The occurrences vote on each id: the most frequent
        one wins (of two equals, the later stored one), and other occurrences drop out, until fewer than an eighth are
        left. Of more than 64 occurrences, 64 vote, evenly spread in their order.
        """
        stored = np.array(tail, np.int64) + 1
        if len(tail) < shortest or int(stored.min()) < 1 or int(stored.max()) > MAX_ID + 1:
            return 0, []
        pattern = stored.astype(">u4").tobytes()
        length, first = 0, 0
        low, high = shortest, len(tail)
        probe = low  # most tails do not occur at all, so try the shortest first
        while low <= high:
            at = self._first(pattern[-4 * probe :])
            if at is None:
                high = probe - 1
            else:
                length, first, low = probe, at, probe + 1
            probe = (low + high + 1) // 2
        if not length:
            return 0, []
        # The range ends where suffixes begin that have the last id + 1 in its place.
        beyond = pattern[-4 * length : -4] + struct.pack(">I", int(stored[-1]) + 1)
        end = max(self._bisect(beyond, first), first + 1)
        return length, self._most_frequent(first, end, length, count)

    def _bisect(self, key: bytes, low: int = 0) -> int:
        """Return where the suffixes from `key` on begin."""
        content, begin, size = self._content, self._begin, len(key)
        return bisect_left(self._order_view, key, low, key=lambda at: content[begin + 4 * at : begin + 4 * at + size])

    def _first(self, pattern: bytes) -> int | None:
        """Return where the suffixes begin that start with `pattern` and have an id after it; None without one."""
        found = self._bisect(pattern + b"\0\0\0\1")
        if found == len(self._order_view):
            return None
        begin = self._begin + 4 * self._order_view[found]
        return found if self._content[begin : begin + len(pattern)] == pattern else None

    def _most_frequent(self, first: int, end: int, length: int, count: int) -> list[int]:
        """Return the ids after the first `length` of suffixes first..end, each the most frequent one."""
        if end - first > _SAMPLE:
            begins = self.order[np.linspace(first, end - 1, _SAMPLE).astype(np.int64)].astype(np.int64) + length
        else:
            begins = self.order[first:end].astype(np.int64) + length
        drafted: list[StoredIds] = []
        done, voters = 0, begins.size
        while True:
            # Suffixes are sorted, so all share what the first and the last of them share.
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
    """Return (n,) where suffixes of `ids` begin, without those at a 0 (a separator), sorted by 64 ids or more.

    Prefix doubling (Manber and Myers 1990), sorting again only what is not yet alone in its place (Larsson and Sadakane
    1999). Suffixes that are equal in the sorted ids are in arbitrary order.
    """
    size = ids.size
    if not size:
        return np.zeros(0, np.int32)
    values, rank = np.unique(ids, return_inverse=True)
    # The doubling begins with as many ids as fit into 62 bits.
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
