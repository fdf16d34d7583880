"""Rendezvous hashing with bounded loads: who answers what, and what moves when a replica leaves."""

from __future__ import annotations

import random

import pytest

from edge.runtime.rendezvous import LEAST, SLACK, Homes, bound, digest, ranked, score

REPLICAS = [digest(f"replica {number}".encode()) for number in range(7)]
KEYS = [digest(f"conversation {number}".encode()) for number in range(2000)]
NONE = [0] * len(REPLICAS)


def first(key: int, loads: list[int], slack: float = SLACK, least: int = LEAST) -> int:
    """The replica of a conversation that no router knows."""
    return placed(Homes(), key, loads, slack, least)


def placed(homes: Homes[int], key: int, loads: list[int], slack: float = SLACK, least: int = LEAST) -> int:
    most = bound(sum(loads), len(loads), slack, least)
    return homes.choose(key, ranked(key, REPLICAS), loads.__getitem__, lambda index: loads[index] < most)


def test_a_digest_and_a_score_are_the_same_in_every_process() -> None:
    assert digest(b"replica 0") == 0x17268A11AF6B4B13  # from another process; any change moves all conversations
    assert score(1, 2) == 0x1E535EEDE31428F0
    assert all(0 <= score(key, replica) < 1 << 64 for key in KEYS[:50] for replica in REPLICAS)


def test_a_replica_that_leaves_moves_its_own_keys_and_no_others() -> None:
    for gone in range(len(REPLICAS)):
        left = [replica for replica in REPLICAS if replica != REPLICAS[gone]]
        for key in KEYS[:300]:
            before, second, *_ = (REPLICAS[index] for index in ranked(key, REPLICAS))
            after = left[ranked(key, left)[0]]
            assert after == (second if before == REPLICAS[gone] else before)


def test_the_order_in_which_replicas_are_listed_does_not_matter() -> None:
    mixed = random.Random(1).sample(REPLICAS, len(REPLICAS))
    for key in KEYS[:300]:
        assert [REPLICAS[index] for index in ranked(key, REPLICAS)] == [mixed[index] for index in ranked(key, mixed)]


def test_keys_are_spread_evenly() -> None:
    counts = [0] * len(REPLICAS)
    for key in KEYS:
        counts[first(key, NONE)] += 1
    share = 1 / len(REPLICAS)
    deviation = (len(KEYS) * share * (1 - share)) ** 0.5  # of a binomial
    assert all(abs(count - len(KEYS) * share) < 4 * deviation for count in counts)


def test_new_conversations_even_out_the_load() -> None:
    loads = [0] * len(REPLICAS)
    for key in KEYS[:70]:
        loads[first(key, loads)] += 1
    assert max(loads) - min(loads) <= 4  # hashing alone: 11


def test_a_conversation_stays_where_it_is_while_there_is_room() -> None:
    homes: Homes[int] = Homes()
    home = placed(homes, KEYS[0], NONE)
    loads = [0] * len(REPLICAS)
    for loads[home] in range(LEAST):
        assert placed(homes, KEYS[0], loads) == home
    loads[home] = LEAST
    away = placed(homes, KEYS[0], loads)
    assert away == next(index for index in ranked(KEYS[0], REPLICAS) if index != home)
    assert placed(homes, KEYS[0], NONE) == away, "what is cached there is newer"


def test_what_a_router_has_forgotten_is_at_one_of_two() -> None:
    rng, homes = random.Random(3), Homes[int](most=5)
    for key in KEYS[:300]:
        loads = [rng.randrange(6) for _ in REPLICAS]
        assert placed(homes, key, loads) in ranked(key, REPLICAS)[:2]
    assert list(homes._homes) == KEYS[295:300]


def test_no_replica_exceeds_the_bound_however_hot_a_key_is() -> None:
    loads, homes = [0] * len(REPLICAS), Homes[int]()
    for _ in range(1000):
        most = bound(sum(loads), len(loads))
        loads[placed(homes, KEYS[0], loads)] += 1
        assert max(loads) <= most
    assert sum(loads) == 1000
    assert max(loads) <= SLACK * 1000 / len(loads) + 1


def test_a_few_requests_stay_together_in_an_idle_fleet() -> None:
    own, second, *_ = ranked(KEYS[0], REPLICAS)
    loads, homes, taken = [0] * len(REPLICAS), Homes[int](), []
    for _ in range(6):
        taken.append(placed(homes, KEYS[0], loads, least=4))
        loads[taken[-1]] += 1
    assert taken == [own] * 4 + [second] * 2
    assert first(KEYS[0], [1] * 7, slack=1.0, least=1) == own  # all are equal: one more is within 2
    assert bound(0, 7, 1.0, 1) == 1


def test_where_no_replica_has_room_none_is_chosen() -> None:
    with pytest.raises(ValueError, match="no replica has room"):
        Homes[int]().choose(1, [0, 1], NONE.__getitem__, lambda _index: False)
