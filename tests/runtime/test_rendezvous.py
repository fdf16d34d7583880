"""Rendezvous hashing with bounded loads: who answers what, and what moves when a replica leaves."""

from __future__ import annotations

import random

from edge.runtime.rendezvous import SLACK, bound, chosen, digest, ranked, score

REPLICAS = [digest(f"replica {number}".encode()) for number in range(7)]
KEYS = [digest(f"conversation {number}".encode()) for number in range(2000)]
NONE = [0] * len(REPLICAS)


def test_a_digest_and_a_score_are_the_same_in_every_process() -> None:
    assert digest(b"replica 0") == 0x17268A11AF6B4B13  # from another process; any change moves all conversations
    assert score(1, 2) == 0x1E535EEDE31428F0
    assert all(0 <= score(key, replica) < 1 << 64 for key in KEYS[:50] for replica in REPLICAS)


def test_a_replica_that_leaves_moves_its_own_keys_and_no_others() -> None:
    for gone in range(len(REPLICAS)):
        left = [replica for replica in REPLICAS if replica != REPLICAS[gone]]
        for key in KEYS[:300]:
            before, after = REPLICAS[chosen(key, REPLICAS, NONE)], left[chosen(key, left, [0] * len(left))]
            if before != REPLICAS[gone]:
                assert after == before
            else:  # to the second of the key's own order
                assert after == REPLICAS[ranked(key, REPLICAS)[1]]


def test_the_order_in_which_replicas_are_listed_does_not_matter() -> None:
    mixed = random.Random(1).sample(REPLICAS, len(REPLICAS))
    assert all(REPLICAS[chosen(k, REPLICAS, NONE)] == mixed[chosen(k, mixed, NONE)] for k in KEYS[:300])


def test_keys_are_spread_evenly() -> None:
    counts = [0] * len(REPLICAS)
    for key in KEYS:
        counts[chosen(key, REPLICAS, NONE)] += 1
    share = 1 / len(REPLICAS)
    deviation = (len(KEYS) * share * (1 - share)) ** 0.5  # of a binomial
    assert all(abs(count - len(KEYS) * share) < 4 * deviation for count in counts)


def test_no_replica_exceeds_the_bound_however_hot_a_key_is() -> None:
    loads = [0] * len(REPLICAS)
    for _ in range(1000):
        most = bound(sum(loads), len(loads))
        loads[chosen(KEYS[0], REPLICAS, loads)] += 1
        assert max(loads) <= most
    assert sum(loads) == 1000
    assert max(loads) <= SLACK * 1000 / len(loads) + 1


def test_a_few_requests_stay_together_in_an_idle_fleet() -> None:
    first, second, *_ = ranked(KEYS[0], REPLICAS)
    loads = [0] * len(REPLICAS)
    taken = []
    for _ in range(6):
        taken.append(chosen(KEYS[0], REPLICAS, loads, least=4))
        loads[taken[-1]] += 1
    assert taken == [first] * 4 + [second] * 2
    assert chosen(KEYS[0], REPLICAS, [1] * 7, slack=1.0, least=1) == first  # all are equal: one more is within 2
    assert bound(0, 7, 1.0, 1) == 1


def test_a_hot_key_spills_to_the_next_of_its_own_order() -> None:
    first, second, *_ = ranked(KEYS[0], REPLICAS)
    loads = [0] * len(REPLICAS)
    assert chosen(KEYS[0], REPLICAS, loads) == first
    loads[first] = bound(5, len(REPLICAS)) + 1
    assert chosen(KEYS[0], REPLICAS, loads) == second
