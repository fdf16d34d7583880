"""The table against plain counting, what is learned from answers, and what drafts may cost on balance."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.runtime.settings import Sampling, SpeculationSettings
from edge.runtime.speculation import Acceptance, Drafter, DraftStore, StepCost
from edge.runtime.speculation import ngrams as module
from edge.runtime.speculation.ngrams import FEW, LEVELS, LONGEST, Ngrams, NgramTable
from edge.runtime.speculation.shared import SharedDrafts

texts = st.lists(st.lists(st.integers(0, 3), max_size=30), max_size=4)


def random_ids(seed: int, count: int, top: int = 5000) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(top) for _ in range(count)]


@given(texts, st.lists(st.integers(0, 4), max_size=6))
def test_the_most_frequent_follower_of_the_longest_known_end_is_found(seqs: list[list[int]], tail: list[int]) -> None:
    found = NgramTable(seqs).follower(tail)
    for length in range(min(len(tail), LONGEST), 0, -1):
        end = tail[len(tail) - length :]
        counts = Counter(s[i] for s in seqs for i in range(length, len(s)) if s[i - length : i] == end)
        most = max(counts.values(), default=0)
        if most >= (2 if length > 2 else 1):
            assert found == (
                min(token for token, count in counts.items() if count == most),
                LEVELS * most // (counts.total() + 1),
            )
            return
    assert found is None


def test_the_same_ids_give_the_same_table_in_any_order_and_of_any_type() -> None:
    seqs = [random_ids(seed, 300, 20) for seed in range(3)]
    one, other = NgramTable(seqs), NgramTable([np.array(ids, np.int64) for ids in reversed(seqs)])
    assert len(one) == len(other) > 300
    tails = [ids[i : i + LONGEST] for ids in [*seqs, random_ids(9, 300, 20)] for i in range(200)]
    assert [one.follower(tail) for tail in tails] == [other.follower(tail) for tail in tails]


def test_a_table_of_nothing_knows_nothing() -> None:
    assert len(NgramTable([])) == len(NgramTable([[], [3]])) == 0
    assert NgramTable([]).follower([1, 2]) is None


def test_no_more_is_drafted_at_once_than_is_mostly_right() -> None:
    source = Ngrams([list(range(50)) * 5]).source([], Sampling())
    source.extend([3])
    found = source.propose(32)
    assert found is not None
    assert found.ids == list(range(4, 4 + FEW))


def test_answers_are_drafted_from_once_enough_of_them_have_come() -> None:
    ngrams, phrase = Ngrams(), [7, 8, 9, 10, 11]
    source = ngrams.source([], Sampling())
    source.extend([1, 2, 7])
    assert source.propose(3) is None
    ngrams.learn(phrase)
    assert source.propose(3) is None  # a few ids are not worth counting
    for seed in range(3):
        ngrams.learn([*random_ids(seed, 100, 5), *phrase])
    found = source.propose(3)
    assert found is not None
    assert (found.ids, found.cost_ms, len(found.buckets)) == ([8, 9, 10], 0.0, 3)
    forced = source.propose(2, [9])
    assert forced is not None
    assert forced.ids == [10, 11]
    source.close()
    ngrams.close()
    assert source.propose(3) is None


def test_old_answers_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_IDS", 1000)
    ngrams = Ngrams([[6000, 6001] * 20])
    source = ngrams.source([], Sampling())
    source.extend([6000])
    assert source.propose(1) is not None
    for seed in range(20):
        ngrams.learn(random_ids(seed, 100))
        assert ngrams._size <= 1000
    assert source.propose(1) is None


def test_answers_of_the_store_and_of_this_session_are_learned() -> None:
    store = DraftStore.in_memory("a" * 64)
    store.add(answer := random_ids(1, 300))
    assert [ids.tolist() for ids in store.latest(300)] == [answer]
    assert store.latest(299) == []
    shared = SharedDrafts(SpeculationSettings(), None)
    shared.remember([4000, *answer], 1)
    for drafts in (SharedDrafts(SpeculationSettings(), store), shared):
        assert drafts._ngrams is not None
        assert drafts._ngrams.table is not None
        assert drafts._ngrams.table.follower(answer[:1]) is not None
        assert drafts._ngrams.table.follower([4000]) is None  # a prompt is not the model's
        drafts.close()


def test_phrases_of_earlier_answers_are_faster() -> None:
    """Each id is followed by one of two, mostly by the first: what free text is to a table."""
    rng = random.Random(1)

    def written(count: int) -> list[int]:
        ids = [0]
        while len(ids) < count:
            ids.append((ids[-1] * 7 + (1 if rng.random() < 0.6 else 500)) % 997)
        return ids

    ngrams, cost, steps = Ngrams([written(5000)]), StepCost(), 0
    acceptance = Acceptance()
    for _ in range(5):
        drafter = Drafter([], [ngrams.source([], Sampling())], cost, acceptance, SpeculationSettings().max_draft)
        answer = written(100)
        at = 1
        drafter.observe(answer[:1], 0)
        while at < len(answer):
            draft = drafter.draft(len(answer) - at)
            right = next((i for i, token in enumerate(draft) if token != answer[at + i]), len(draft))
            drafter.observe(answer[at : at + right + 1], len(draft))
            cost.record(len(draft) + 1, 10.0 + 0.01 * len(draft))
            at += right + 1
            steps += 1
    assert 495 / steps > 1.5


def test_drafts_that_only_seem_to_pay_end() -> None:
    """Rows that are dearer than the engine's were: the balance ends what chances alone would go on with."""
    acceptance = Acceptance()
    for _ in range(4):
        assert acceptance.pays
        acceptance.settle(-0.6)
    assert not acceptance.pays
    plain = 0
    for _ in range(1000):  # the balance fades from -2.6 at most, so that much of 1,000 steps is spent
        if acceptance.pays:
            acceptance.settle(-0.6)
        else:
            acceptance.settle(0.0)
            plain += 1
    assert plain >= 1000 - 1000 * 0.005 * 2.6 / 0.6
    acceptance.settle(30.0)
    assert acceptance.pays
