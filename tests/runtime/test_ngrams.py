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
from edge.runtime.speculation.ngrams import LEVELS, LONGEST, Ngrams, NgramTable, count_ngrams
from edge.runtime.speculation.shared import SharedDrafts

texts = st.lists(st.lists(st.integers(0, 3), max_size=30), max_size=4)


def random_ids(seed: int, count: int, top: int = 5000) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(top) for _ in range(count)]


@given(texts, st.lists(st.integers(0, 4), max_size=6))
def test_the_most_frequent_follower_of_the_longest_known_end_is_found(seqs: list[list[int]], tail: list[int]) -> None:
    found = NgramTable(count_ngrams(seqs), 5).follower(tail)
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


def test_the_same_ids_give_the_same_bytes_whatever_their_type() -> None:
    seqs = [random_ids(seed, 300, 20) for seed in range(3)]
    assert count_ngrams(seqs) == count_ngrams([np.array(s, np.int64) for s in seqs])
    assert len(NgramTable(count_ngrams([]), 1)) == 0


def test_a_table_that_would_be_too_large_leaves_rare_long_contexts_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seqs = [random_ids(1, 500, 6) * 2]
    whole = NgramTable(count_ngrams(seqs), 6)
    monkeypatch.setattr(module, "MAX_ENTRIES", 60)
    few = NgramTable(count_ngrams(seqs), 6)
    assert len(whole) > 60 == len(few)
    assert all(few.follower([i, j]) == whole.follower([i, j]) for i in range(6) for j in range(6))


def test_what_is_no_table_is_refused() -> None:
    content = count_ngrams([[1, 2, 3, 1, 2, 3]])
    for bad, message in (
        (b"", "no table"),
        (b"x" + content[1:], "no table"),
        (content[:-1], "bytes, expected"),
    ):
        with pytest.raises(ValueError, match=message):
            NgramTable(bad, 5)
    with pytest.raises(ValueError, match="token id 3, expected 0 to 2"):
        NgramTable(content, 3)


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
        drafter = Drafter([], SpeculationSettings(), cost, None, acceptance, [ngrams.source([], Sampling())])
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
