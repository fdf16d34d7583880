"""The rules by which a replica is chosen."""

from __future__ import annotations

import numpy as np
import pytest

from edge.profiles.fleet.routing import Router, Rule
from edge.runtime.errors import SettingsError
from edge.runtime.rendezvous import Homes, bound, digest, ranked

COUNT = 40
KEYS = [digest(b"%d" % number) for number in range(500)]
NAMES = [digest(b"replica %d" % number) for number in range(COUNT)]


def none() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.zeros(COUNT, np.int64)


def test_many_replicas_ranked_at_once_are_ranked_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    router, homes = Router("prefix", COUNT, slack=1.0, least=1), Homes[int]()
    for key in [*KEYS, *KEYS]:
        loads = rng.integers(0, 6, COUNT)
        room = loads < bound(int(loads.sum()), COUNT, 1.0, 1)
        one_by_one = homes.choose(key, ranked(key, NAMES), loads.__getitem__, room.__getitem__)
        assert router.choose(key, loads, int(loads.sum())) == one_by_one


def test_a_lost_replica_moves_its_own_keys_which_stay_where_they_went() -> None:
    router = Router("prefix", COUNT)
    before = {key: router.choose(key, none(), 0) for key in KEYS}
    router.lose([3, 4])
    during = {key: router.choose(key, none(), 0) for key in KEYS}
    router.come_back([3, 4])
    assert {key for key in KEYS if during[key] != before[key]} == {key for key in KEYS if before[key] in (3, 4)}
    assert during == {key: router.choose(key, none(), 0) for key in KEYS}


def test_one_after_the_other_is_even_and_skips_what_is_lost() -> None:
    router = Router("round-robin", 4)
    router.lose([2])
    assert sorted(router.choose(key, none(), 0) for key in KEYS[:30]) == [0] * 10 + [1] * 10 + [3] * 10


def test_of_two_that_are_drawn_the_one_with_fewer_requests_is_taken() -> None:
    router = Router("two-choices", 2)
    loads = np.array([5, 1])
    taken = [router.choose(key, loads, 6) for key in KEYS]
    assert 0 < taken.count(0) < 0.35 * len(taken)  # only when it is drawn twice: 1 in 4


def test_the_least_loaded_is_taken_and_ties_take_turns() -> None:
    router = Router("least", 3)
    assert {router.choose(key, np.array([2, 0, 1]), 3) for key in KEYS[:5]} == {1}
    assert {router.choose(key, np.array([0, 1, 0]), 1) for key in KEYS[:5]} == {0, 2}


def test_an_unknown_rule_is_named() -> None:
    wrong: Rule = "first"  # type: ignore[assignment]
    with pytest.raises(SettingsError, match="rule is first, expected one of round-robin"):
        Router(wrong, 2)
