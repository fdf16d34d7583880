"""Which of several replicas answers a request, so that requests that begin alike meet the same one's cache.

In: a digest of how a request begins, digests of the replicas' names, and how many requests each has. Out: one of them.
Knows nothing about networks or engines.

Every pair of a key and a replica has a score, and the highest wins (rendezvous hashing: Thaler and Ravishankar, "Using
name-based mappings to increase hit rates", 1998). A replica that leaves moves its own keys and no others. No replica
takes more than SLACK times the mean of all (Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded
loads", 2016), or LEAST requests where that is more: what is beyond that goes to the next in the key's own order.

A conversation that is new goes to the less loaded of its first two, which evens out the load as drawing two does
(Mitzenmacher, "The power of two choices in randomized load balancing", 2001), and stays there: a router remembers. What
it has forgotten, or another router knows, is in the cache of one of two.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from hashlib import blake2b
from typing import Generic, TypeVar

SLACK = 1.5  # of the mean load; 1 balances perfectly and forgets the key, more keeps conversations together
# Requests that a replica may have however few there are in all: without them, two conversations that meet in an idle
# fleet would part for good, and lose what is cached of one (docs/fleet.md has the figures).
LEAST = 8
MOST_HOMES = 100_000  # conversations that a router remembers, 14 MB of them
_WORD = (1 << 64) - 1

T = TypeVar("T", bound=Hashable)


def digest(text: bytes) -> int:
    """64 bits of a text: of a replica's name, or of what requests of one conversation have in common."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")


def score(key: int, replica: int) -> int:
    """64 bits that are as good as random for every pair of digests: the last steps of splitmix64 (Vigna, 2015)."""
    mixed = (key ^ replica) & _WORD
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _WORD
    return mixed ^ (mixed >> 31)


def ranked(key: int, replicas: Sequence[int]) -> list[int]:
    """Indices of the replicas, given as digests, the one that the key belongs to first."""
    return sorted(range(len(replicas)), key=lambda index: (score(key, replicas[index]), replicas[index]), reverse=True)


def bound(total: int, count: int, slack: float = SLACK, least: int = LEAST) -> int:
    """How many requests one of `count` replicas may have once a new one has joined the `total` that run or wait."""
    return max(math.ceil(slack * (total + 1) / count), least)


class Homes(Generic[T]):
    """Where conversations are, as one router knows it."""

    def __init__(self, most: int = MOST_HOMES) -> None:
        self._homes: OrderedDict[int, T] = OrderedDict()  # by key, the one that was asked for last at the end
        self._most = most

    def choose(self, key: int, order: Iterable[T], load: Callable[[T], int], has_room: Callable[[T], bool]) -> T:
        """Return the replica that takes a request, and remember it. Raises ValueError if none has room.

        order: replicas, the one that the key belongs to first. has_room: whether one is there and below `bound`.
        """
        home = self._homes.pop(key, None)
        if home is None or not has_room(home):
            room = (replica for replica in order if has_room(replica))
            first = next(room, None)
            if first is None:
                raise ValueError("no replica has room")
            second = next(room, first)
            home = second if load(second) < load(first) else first
        self._homes[key] = home
        if len(self._homes) > self._most:
            self._homes.popitem(last=False)
        return home
