"""The automaton against plain search, and the drafter against a pretended engine."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.runtime.errors import SettingsError
from edge.runtime.settings import SpeculationSettings
from edge.runtime.speculation import Acceptance, Drafter, DraftStore, StepCost, SuffixAutomaton
from edge.runtime.speculation.copies import StoreSource, TextSource, buckets
from edge.runtime.speculation.source import DraftSource, Proposal
from tests.runtime.drafted import Run, line

texts = st.integers(1, 3).flatmap(lambda top: st.lists(st.integers(0, top), max_size=80))


def occurrences(text: list[int], pattern: list[int]) -> list[int]:
    """Where `pattern` ends with something behind it."""
    size = len(pattern)
    return [end for end in range(size, len(text)) if text[end - size : end] == pattern]


def longest(text: list[int], tail: list[int]) -> int:
    """Length of the longest suffix of `tail` that stands in `text` with something behind it."""
    return next((size for size in range(len(tail), 0, -1) if occurrences(text, tail[-size:])), 0)


def cyclic(text: list[int], begin: int, count: int) -> list[int]:
    """What follows `begin`, copied from the copy itself at its end."""
    text = text.copy()
    for i in range(count):
        text.append(text[begin + i])
    return text[len(text) - count :]


@given(texts)
def test_draft_is_what_followed_the_longest_repeated_suffix(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    for size, token_id in enumerate(text, start=1):
        automaton.append(token_id)
        written = text[:size]
        length, ids = automaton.draft(7)
        assert length == longest(written, written)
        if not length:
            assert ids == []
            continue
        ends = occurrences(written, written[size - length :])
        if size <= 16:  # too short for an end of 15 longer repeats: the latest, without exception
            assert ids == cyclic(written, ends[-1], 7)
        assert ids in [cyclic(written, end, 7) for end in ends]


@given(texts)
def test_with_fewer_ends_noted_a_draft_still_follows_an_occurrence(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge.runtime.speculation.automaton._NOTED", 1)
        for size, token_id in enumerate(text, start=1):
            automaton.append(token_id)
            length, ids = automaton.draft(5)
            assert length == longest(text[:size], text[:size])
            if length:
                ends = occurrences(text[:size], text[size - length : size])
                assert ids in [cyclic(text[:size], end, 5) for end in ends]
            assert automaton.find(text[size:], 5)[0] == longest(text[:size], text[size:])


@given(texts, st.integers(0, 80))
def test_appending_and_extending_are_the_same(text: list[int], cut: int) -> None:
    one, other = SuffixAutomaton(text), SuffixAutomaton(text[:cut])
    for token_id in text[cut:]:
        other.append(token_id)
    assert vars(one) == vars(other)
    assert len(one) == len(text)
    assert one.tail(5) == text[-5:]
    assert one.tail(0) == []


@given(texts)
def test_at_most_two_states_and_three_transitions_an_id(text: list[int]) -> None:
    automaton = SuffixAutomaton(text)
    states = len(automaton._length)
    transitions = sum(first is not None for first in automaton._token) + sum(map(len, automaton._more.values()))
    assert states <= max(2 * len(text), 1)
    assert transitions <= 3 * max(len(text), 1)


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_a_loop_is_drafted_to_any_length(period: int) -> None:
    loop = list(range(period))
    automaton = SuffixAutomaton(loop * 2 + loop[:1])
    length, ids = automaton.draft(40)
    assert length == period + 1
    assert ids == ((loop[1:] + loop[:1]) * 40)[:40]


@given(st.lists(st.lists(st.integers(0, 1), max_size=12), max_size=8), texts, st.sampled_from([1, 16]))
def test_find_does_not_reach_across_a_break(sequences: list[list[int]], tail: list[int], noted: int) -> None:
    automaton = SuffixAutomaton()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge.runtime.speculation.automaton._NOTED", noted)
        for sequence in sequences:
            automaton.separate()
            automaton.extend(sequence)
    length, ids = automaton.find(tail, 5)
    assert length == max((longest(sequence, tail) for sequence in sequences), default=0)
    if not length:
        assert ids == []
    else:
        pattern = tail[len(tail) - length :]
        assert ids in [s[end : end + 5] for s in sequences for end in occurrences(s, pattern)]


def test_no_ids_are_drafted_where_none_are_asked_for() -> None:
    automaton = SuffixAutomaton([1, 2, 1])
    assert automaton.draft(0) == (1, [])
    assert automaton.find([1], 0) == (1, [])


@pytest.mark.parametrize(("name", "value"), [("max_draft", -1), ("max_draft", 33), ("min_match", 0), ("min_match", 33)])
def test_settings_have_ranges(name: str, value: int) -> None:
    with pytest.raises(SettingsError, match=f"{name} is {value}, expected"):
        SpeculationSettings(**{name: value})


def copying(
    prompt: list[int],
    settings: SpeculationSettings,
    cost: StepCost,
    store: DraftStore | None = None,
    acceptance: Acceptance | None = None,
) -> Drafter:
    """What drafts copies of its text, and of a store."""
    sources: list[DraftSource] = [TextSource(settings.min_match)]
    if store is not None:
        sources.append(StoreSource(store, settings.min_match))
    return Drafter(prompt, sources, cost, acceptance or Acceptance(), settings.max_draft)


def chance(acceptance: Acceptance, name: str, match_length: int) -> float:
    """That the id after a match of this length is right."""
    source: DraftSource = TextSource(1) if name == "text" else StoreSource(DraftStore.in_memory("a" * 64), 1)
    return acceptance.record_of(source).chances(buckets(match_length, 1))[0]


def learn(acceptance: Acceptance, match_length: int, drafted: list[int], written: list[int]) -> None:
    """Learn of a draft from the text."""
    record = acceptance.record_of(TextSource(1))
    record.learn(Proposal(drafted, buckets(match_length, len(drafted))), written)


def random_ids(seed: int, count: int, top: int = 5000) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(top) for _ in range(count)]


def test_copying_is_at_least_twice_as_fast() -> None:
    prompt, cost = random_ids(1, 600), StepCost()
    drafter = copying(prompt, SpeculationSettings(), cost)
    run = Run(prompt[100:500], drafter, cost)
    assert run.speedup > 2
    assert drafter.steps < 40
    assert drafter.drafted == sum(count for _, count in run.drafts)
    assert drafter.steps + drafter.accepted == 400


def test_copying_with_changes_is_faster_too() -> None:
    prompt, cost = random_ids(1, 600), StepCost()
    answer = [token if i % 25 else 7777 + i for i, token in enumerate(prompt)]
    assert Run(answer, copying(prompt, SpeculationSettings(), cost), cost).speedup > 2


@pytest.mark.parametrize("slope", [0.25 / 7, 0.1])
@pytest.mark.parametrize("top", [20, 40, 5000])
def test_text_that_shares_nothing_costs_three_percent_at_most(top: int, slope: float) -> None:
    for seed in range(3):
        cost = StepCost()
        prompt, answer = random_ids(seed, 1000, top), random_ids(seed + 100, 400, top)
        run = Run(answer, copying(prompt, SpeculationSettings(), cost), cost, line(1.0, slope))
        assert run.speedup > 0.97


def test_how_far_a_phrase_is_right_is_learned() -> None:
    """Three ids that stood before and never go on as they did: the third is drafted, and soon nothing behind it."""
    phrases = [random_ids(seed, 3) for seed in range(20)]
    prompt = [token for i, phrase in enumerate(phrases) for token in [*phrase, 10_000 + i]]
    answer = [token for i, phrase in enumerate(phrases * 5) for token in [*phrase, 20_000 + i, 30_000 + i]]
    cost = StepCost()
    run = Run(answer, copying(prompt, SpeculationSettings(), cost), cost)
    assert any(count > 1 for _, count in run.drafts)
    assert {count for at, count in run.drafts if at > 150} == {1}
    assert run.speedup > 1.1


def test_a_copy_that_starts_late_is_found_within_few_tokens() -> None:
    prompt, cost = random_ids(1, 1000), StepCost()
    answer = random_ids(2, 300) + prompt[200:500]
    run = Run(answer, copying(prompt, SpeculationSettings(), cost), cost)
    begins = [at for at, _ in run.drafts if at >= 300]
    assert begins[0] <= 304
    assert sum(at >= 300 for at, _ in run.drafts) < 40  # 300 tokens


def test_a_loop_of_the_answer_itself_is_drafted() -> None:
    cost = StepCost()
    run = Run([5, 6, 7] * 100, copying([1, 2, 3], SpeculationSettings(), cost), cost)
    assert run.drafts[0][0] < 8
    assert run.speedup > 2


def test_costly_rows_are_not_drafted() -> None:
    prompt, cost = random_ids(1, 200), StepCost()
    for _ in range(20):
        for rows in range(1, 10):
            cost.record(rows, float(rows))
    drafter = copying([*prompt, *prompt[:50]], SpeculationSettings(), cost)
    assert drafter.draft(100) == []


def test_what_one_answer_taught_the_next_one_knows() -> None:
    prompt, acceptance = random_ids(1, 200), Acceptance()
    new, settings = [*prompt, *prompt[:3]], SpeculationSettings()
    assert copying(new, settings, StepCost(), acceptance=acceptance).draft(100)
    before = chance(acceptance, "text", 3)
    for _ in range(20):
        drafter = copying(new, settings, StepCost(), acceptance=acceptance)
        drafter.observe([6000], len(drafter.draft(100)))
    assert chance(acceptance, "text", 3) < before / 4
    assert chance(acceptance, "store", 3) == before
    assert copying(new, settings, StepCost(), acceptance=acceptance).draft(100) == []


def test_what_is_not_drafted_is_learned_from_as_well() -> None:
    prompt, acceptance = random_ids(1, 200), Acceptance()
    new = [*prompt, *prompt[:2]]
    for _ in range(30):
        drafter = copying(new, SpeculationSettings(), StepCost(), acceptance=acceptance)
        drafter.draft(100)
        drafter.observe([prompt[2]], 0)  # the caller may drop a draft
    assert chance(acceptance, "text", 2) > 0.8
    assert copying(new, SpeculationSettings(), StepCost(), acceptance=acceptance).draft(100)


def test_acceptance_counts_up_to_the_first_rejection() -> None:
    acceptance = Acceptance()
    prior = [chance(acceptance, "text", length) for length in (1, 2, 3, 5, 9, 17)]
    assert prior == sorted(prior)
    learn(acceptance, 2, [1, 2, 3, 4], [1, 2, 9, 9])  # matches of 2 and 3 were right, one of 4 was wrong
    assert chance(acceptance, "text", 2) == pytest.approx((1 + 3 * prior[1]) / (1 + 3))
    assert chance(acceptance, "text", 4) == pytest.approx((0.98 + 3 * prior[2]) / (0.98 + 1 + 3))
    assert chance(acceptance, "text", 5) == prior[3]
    assert buckets(2, 3) == [buckets(length, 1)[0] for length in (2, 3, 4)]


def test_what_was_right_long_ago_counts_little() -> None:
    acceptance = Acceptance()
    learn(acceptance, 20, [1] * 1000, [1] * 1000)
    assert chance(acceptance, "text", 20) > 0.99
    for _ in range(60):
        learn(acceptance, 20, [1], [2])
    assert chance(acceptance, "text", 20) < 0.35  # 0.98⁶⁰ = 0.3
    learn(acceptance, 20, [1] * 60, [1] * 60)
    assert chance(acceptance, "text", 20) > 0.65


@pytest.mark.parametrize("limit", [0, 1, 2, 5, 12])
def test_a_draft_leaves_room_for_the_models_own_token(limit: int) -> None:
    prompt = random_ids(1, 200)
    drafter = copying([*prompt, *prompt[:50]], SpeculationSettings(max_draft=9), StepCost())
    assert drafter.draft(limit) == prompt[50 : 50 + min(max(limit - 1, 0), 9)]


def test_max_draft_0_and_a_long_min_match_draft_nothing() -> None:
    prompt = random_ids(1, 200)
    text = [*prompt, *prompt[:20]]
    assert copying(text, SpeculationSettings(max_draft=0), StepCost()).draft(100, [1]) == []
    assert copying(text, SpeculationSettings(min_match=21), StepCost()).draft(100) == []
    assert copying(text, SpeculationSettings(min_match=20), StepCost()).draft(100)


def test_forced_ids_come_first_and_the_copy_goes_on_behind_them() -> None:
    prompt = random_ids(1, 200)
    drafter = copying([*prompt, *prompt[:20]], SpeculationSettings(), StepCost())
    assert drafter.draft(100, prompt[20:24])[:10] == prompt[20:30]
    assert drafter.draft(100, prompt[100:110])[:15] == prompt[100:115]  # the copy moves on with what is forced
    assert drafter.draft(100, [6000, 6001]) == [6000, 6001]
    assert drafter.draft(100, [*range(6000, 6010), *prompt[60:62]]) == [*range(6000, 6010), *prompt[60:62]]
    assert drafter.draft(3, [6000, 6001, 6002]) == [6000, 6001]
    assert drafter.draft(1, [6000]) == []


def test_what_was_forced_teaches_nothing() -> None:
    prompt, acceptance = random_ids(1, 200), Acceptance()
    drafter = copying([*prompt, *prompt[:20]], SpeculationSettings(), StepCost(), acceptance=acceptance)
    before = chance(acceptance, "text", 24)
    drafter.draft(100, prompt[20:24])
    drafter.observe(prompt[20:24], 4)
    assert chance(acceptance, "text", 24) == before
    drafter.draft(100, prompt[24:26])
    drafter.observe(prompt[24:30], 10)
    assert chance(acceptance, "text", 24) > before
    assert drafter.draft(100)[:5] == prompt[30:35]


def test_the_better_source_drafts(tmp_path: Path) -> None:
    store = DraftStore.open(tmp_path / "drafts", "a" * 64)
    earlier = random_ids(3, 100)
    store.add(earlier)
    prompt = [1, earlier[9], 2, 3, *earlier[:10]]  # the prompt knows one id of it, the store ten
    settings = SpeculationSettings(min_match=1)
    assert copying(prompt, settings, StepCost(), store).draft(100)[:8] == earlier[10:18]
    copied = [*earlier[8:10], *range(6000, 6040)]
    prompt = [6100, *copied, 6101, *range(6020, 6040), *copied[:20]]  # the store knows nothing of this
    assert copying(prompt, settings, StepCost(), store).draft(100)[:8] == copied[20:28]


def test_more_tokens_than_drafted_are_refused() -> None:
    drafter = copying([1, 2], SpeculationSettings(), StepCost())
    with pytest.raises(AssertionError, match="3 tokens followed 1 drafted"):
        drafter.observe([1, 2, 3], 1)
