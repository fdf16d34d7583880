"""Which replica a request is sent to: the rules that are compared, for simulated and for real replicas.

In: a conversation's key, and how many requests each replica has now. Out: an index. A rule sees nothing else, but for
where it sent a conversation before: a real router does not know either what a replica's cache holds or how long an
answer will be.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from edge.runtime.errors import SettingsError
from edge.runtime.rendezvous import LEAST, SLACK, Homes, bound, digest

Rule = Literal["round-robin", "two-choices", "least", "prefix"]
RULES: tuple[Rule, ...] = get_args(Rule)
Loads = npt.NDArray[np.int64]
_FIRST = 16  # of a key's order that are remembered; more are ranked when all of these are full or lost


class Router:
    """One rule over replicas that come and go.

    round-robin: one after the other. two-choices: the one with fewer requests of two that are drawn, as Ray Serve does
    (ray 2.60, PowerOfTwoChoicesRequestRouter). least: the one with the fewest. prefix: `runtime/rendezvous.py`.
    """

    def __init__(self, rule: Rule, replicas: int, seed: int = 0, slack: float = SLACK, least: int = LEAST) -> None:
        if rule not in RULES:
            raise SettingsError(f"rule is {rule}, expected one of {', '.join(RULES)}", param="rule")
        self.rule, self._slack, self._least = rule, slack, least
        self._rng = random.Random(seed)
        self._next = 0
        self._homes: Homes[int] = Homes()
        self._digests = np.array([digest(b"replica %d" % number) for number in range(replicas)], np.uint64)
        self._there = np.ones(replicas, bool)
        self._alive = np.arange(replicas)
        self._orders: dict[int, Sequence[int]] = {}  # key -> the first of its order, lost ones included

    @property
    def alive(self) -> int:
        """How many there are now."""
        return len(self._alive)

    def lose(self, replicas: Sequence[int]) -> None:
        self._there[list(replicas)] = False
        self._alive = np.flatnonzero(self._there)

    def come_back(self, replicas: Sequence[int]) -> None:
        self._there[list(replicas)] = True
        self._alive = np.flatnonzero(self._there)

    def choose(self, key: int, loads: Loads, total: int) -> int:
        """The replica for a request. loads: requests of each, lost ones included; total: of those that are there."""
        if not self.alive:
            raise SettingsError("no replica is left")
        if self.rule == "round-robin":
            self._next += 1
            return int(self._alive[self._next % self.alive])
        if self.rule == "two-choices":
            one, other = (int(self._alive[self._rng.randrange(self.alive)]) for _ in range(2))
            return one if loads[one] <= loads[other] else other
        if self.rule == "least":
            return self.least(loads)
        return self._of_prefix(key, loads, total)

    def least(self, loads: Loads) -> int:
        """The replica with the fewest requests; of several the next one in turn, so that none is preferred."""
        ordered = loads[self._alive]
        few = np.flatnonzero(ordered == ordered.min())
        self._next += 1
        return int(self._alive[few[self._next % len(few)]])

    def _of_prefix(self, key: int, loads: Loads, total: int) -> int:
        most = bound(total, self.alive, self._slack, self._least)

        def has_room(index: int) -> bool:
            return bool(self._there[index] and loads[index] < most)

        return self._homes.choose(key, self._order(key), loads.__getitem__, has_room)

    def _order(self, key: int) -> Iterator[int]:
        order = self._orders.get(key)
        if order is None:
            order = self._orders[key] = self._ranked(key, _FIRST)
        yield from order
        yield from self._ranked(key, len(self._digests))[_FIRST:]

    def _ranked(self, key: int, count: int) -> Sequence[int]:
        """The first of `rendezvous.ranked`, computed for all replicas at once."""
        scores = _mixed(self._digests ^ np.uint64(key))
        count = min(count, len(scores))
        first = np.argpartition(scores, len(scores) - count)[len(scores) - count :]
        return [int(index) for index in first[np.argsort(scores[first])[::-1]]]


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The mixing of `rendezvous.score`; arrays of unsigned integers wrap around as it does."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
