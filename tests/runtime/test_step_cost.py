"""The cost of a step as it is learned: against known costs, and against drafts on an engine that changes slowly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.runtime.engines.engine import Step
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.settings import CachePrecision, EngineSettings
from edge.runtime.speculation import Acceptance, Drafter, StepCost
from edge.runtime.speculation.source import Proposal
from tests.conftest import ENGINES
from tests.runtime.drafted import Run, line


@pytest.mark.parametrize("slope", [0.01, 0.03, 0.1, 0.4])
def test_cost_is_learned_through_noise(slope: float) -> None:
    rng, cost, true = random.Random(1), StepCost(), line(20.0, slope)
    for _ in range(300):
        rows = rng.choice([1, 1, 2, 4, 8, 16])
        hiccup = 10 if rng.random() < 0.1 else 1
        cost.record(rows, true(rows) * rng.uniform(0.97, 1.03) * hiccup)
    # A ratio of two medians, each within 3 %, where the hiccups are too few to reach it: 6 %, and the prior's share of
    # 2 in 11. Between and beyond the rows that were seen a straight line adds as much again at most.
    for rows in (1, 2, 4, 8, 16):
        assert cost.ms(rows) == pytest.approx(true(rows), rel=0.08)
    for rows in (6, 12, 32):
        assert cost.ms(rows) == pytest.approx(true(rows), rel=0.12)


def test_cost_follows_what_is_no_line() -> None:
    measured = {1: 61.0, 2: 62.0, 4: 66.0, 8: 76.0, 16: 118.0, 32: 200.0}
    cost = StepCost()
    for _ in range(12):
        for rows, ms in measured.items():
            cost.record(rows, ms)
    for rows, ms in measured.items():
        assert cost.ms(rows) == pytest.approx(ms, rel=0.05)
    assert all(cost.ms(rows) <= cost.ms(rows + 1) for rows in range(1, 64))


def test_more_rows_never_cost_less() -> None:
    cost = StepCost()
    for _ in range(12):
        for rows, ms in ((1, 20.0), (4, 30.0), (8, 22.0), (12, 18.0)):
            cost.record(rows, ms)
    assert all(cost.ms(rows) <= cost.ms(rows + 1) for rows in range(1, 64))


def test_cost_before_anything_is_known_lies_between_the_models_measured() -> None:
    cost = StepCost()
    assert cost.ms(1) == 1.0
    assert 76 / 61 < cost.ms(8) < 33.6 / 18.8
    cost.record(1, 50.0)
    assert cost.ms(1) == 50.0
    assert cost.ms(8) == pytest.approx(50 * 1.56)


def test_cost_keeps_the_ratios_when_the_context_grows() -> None:
    cost = StepCost()
    for first in (20.0, 60.0):
        for _ in range(20):
            for rows in (1, 5, 9):
                cost.record(rows, line(first, 0.03)(rows))
        for _ in range(20):
            cost.record(1, first * 2)
        assert cost.ms(1) == pytest.approx(2 * first)
        assert cost.ms(9) == pytest.approx(2 * first * 1.24, rel=0.05)


def test_an_old_single_step_is_no_measure() -> None:
    cost = StepCost()
    for _ in range(5):
        cost.record(1, 20.0)
    for _ in range(40):
        cost.record(5, 24.0)
    for _ in range(20):
        cost.record(9, 60.0)  # the context has grown, or the machine is busy
    assert cost.ms(9) == pytest.approx(60, rel=0.01)
    assert cost.ms(9) / cost.ms(1) < 1.7


def test_a_first_slow_step_of_a_shape_does_not_end_drafting() -> None:
    cost = StepCost()
    for _ in range(5):
        cost.record(1, 20.0)
    before = cost.ms(9) / cost.ms(1)
    cost.record(9, 2000.0)  # sets up the shape
    assert cost.ms(9) / cost.ms(1) == before
    cost.record(9, 2000.0)  # and once more; counts as twice what was expected at most
    assert cost.ms(9) / cost.ms(1) < 1.6 * before


def test_a_long_step_counts_as_a_prefill() -> None:
    cost = StepCost()
    cost.record(1, 20.0)
    cost.record(512, 5000.0)
    assert cost.ms(1) == 20.0


@pytest.mark.parametrize(
    ("rows", "ms"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, -1.0), (1, float("nan")), (1, float("inf"))]
)
def test_cost_refuses_what_cannot_be(rows: int, ms: float) -> None:
    with pytest.raises(AssertionError, match="a step of"):
        StepCost().record(rows, ms)


@pytest.mark.parametrize("rows", [0, 65])
def test_cost_knows_64_rows(rows: int) -> None:
    with pytest.raises(AssertionError, match=f"the cost of {rows} rows"):
        StepCost().ms(rows)


class Changing:
    """An engine whose steps take longer when they have other rows than the last one. Its least rows are one step's."""

    def __init__(self, change_ms: float, least_rows: int = 1, noise: float = 0.0) -> None:
        self.change_ms, self.least_rows, self.noise = change_ms, least_rows, noise
        self.computed = least_rows
        self.rng = random.Random(1)

    def ms(self, rows: int) -> float:
        computed = max(rows, self.least_rows)
        ms = line(10.0, 0.08)(computed + 1 - self.least_rows) + self.change_ms * (computed != self.computed)
        self.computed = computed
        return ms * self.rng.uniform(1 - self.noise, 1 + self.noise)


@pytest.mark.parametrize("change_ms", [1.0, 4.0, 10.0])
def test_a_change_of_rows_is_charged_where_drafts_begin_it(change_ms: float) -> None:
    engine, cost = Changing(change_ms, noise=0.02), StepCost()
    for rows in [1, 1, 1, 4, 1, 1, 8, 8, 1, 1, 1, 4, 4, 4] * 12:
        cost.record(rows, engine.ms(rows))
    # A median of nine within 2 %, and of differences within 4 % of a step; a ratio has that of the change besides.
    assert cost.ms(1) == pytest.approx(10.0, rel=0.03)
    assert cost.ms(4) == pytest.approx(12.4, rel=0.08)  # as the last step was
    assert cost.ms(8) == pytest.approx(15.6 + 2 * change_ms, rel=0.08)
    cost.record(1, engine.ms(1))
    assert cost.ms(4) == pytest.approx(12.4 + 2 * change_ms, rel=0.08)
    assert cost.ms(1) == pytest.approx(10.0, rel=0.03)


def test_noise_is_no_change() -> None:
    rng, cost = random.Random(1), StepCost()
    for _ in range(600):
        rows = rng.choice([1, 1, 1, 1, 4, 8])
        cost.record(rows, line(10.0, 0.08)(rows) * rng.uniform(0.97, 1.03) * (10 if rng.random() < 0.1 else 1))
        assert cost.ms(16) / cost.ms(1) < 2.5  # 2.2, and the noise; two changes that cost a third would make it 2.9


def test_a_change_that_is_not_seen_any_more_is_tried_again() -> None:
    engine, cost = Changing(8.0), StepCost()
    for rows in [1, 1, 1, 4] * 12:
        cost.record(rows, engine.ms(rows))
    cost.record(1, engine.ms(1))
    assert cost.ms(4) == pytest.approx(28.4, rel=0.08)
    for _ in range(2048):
        cost.record(1, engine.ms(1))
    assert cost.ms(4) < 14


def test_rows_that_every_step_has_cost_nothing() -> None:
    engine, cost = Changing(5.0, least_rows=2), StepCost(least_rows=2)
    assert cost.ms(2) == cost.ms(1) == 1.0
    assert cost.ms(3) == pytest.approx(1.08)
    for rows in [1, 2, 2, 1, 2, 5] * 12:
        cost.record(rows, engine.ms(rows))
    assert cost.ms(2) == cost.ms(1) == pytest.approx(10.0, rel=0.03)
    assert cost.ms(5) == pytest.approx(12.4, rel=0.08)


class Guesses:
    """Drafts of three ids, of which each is right with the same chance if those before it are."""

    name = "guesses"
    priors = (0.5,)

    def __init__(self, answer: Sequence[int], chance: float) -> None:
        self.answer, self.chance, self.known, self.rng = answer, chance, 0, random.Random(2)

    def extend(self, ids: Sequence[int]) -> None:
        self.known += len(ids)

    def costs_ms(self, most: int) -> Sequence[float]:
        return ()

    def propose(self, count: int, forced: Sequence[int] = ()) -> Proposal | None:
        ids = [token if self.rng.random() < self.chance else -1 for token in self.answer[self.known :][: min(count, 3)]]
        return Proposal(ids, [0] * len(ids)) if ids else None

    def close(self) -> None:
        pass


def speedup(chance: float, change_ms: float) -> float:
    """Of drafts over plain steps, in the time of an engine that computes two rows at least."""
    answer = list(range(3000))
    engine, cost = Changing(change_ms, least_rows=2, noise=0.02), StepCost(least_rows=2)
    drafter = Drafter([], [Guesses(answer, chance)], cost, Acceptance(), max_draft=31)
    return 10.0 * Run(answer, drafter, cost, engine.ms).speedup


@pytest.mark.parametrize("change_ms", [0.0, 4.0, 10.0])
def test_a_slow_change_takes_no_free_draft_away(change_ms: float) -> None:
    """Of ids that are right in three of ten cases the first one is free, and no more of them pay for two changes."""
    assert speedup(0.3, change_ms) > 1.25  # 1.3 with one id each time; the rest is learning


@pytest.mark.parametrize("change_ms", [0.0, 4.0])
def test_drafts_that_are_mostly_right_pay_for_a_change(change_ms: float) -> None:
    assert speedup(0.9, change_ms) > 2.7  # 3.44 tokens a step of 11.6 ms are 2.97 times plain ones


@pytest.mark.parametrize(("engine", "kv_precision"), [*((engine, None) for engine in ENGINES), ("openvino", "u8")])
@pytest.mark.parametrize("reproducible", [False, True])
def test_engines_tell_how_many_rows_a_step_has(
    tiny_bundle: Path, engine: str, kv_precision: CachePrecision | None, *, reproducible: bool
) -> None:
    settings = EngineSettings(engine, reproducible=reproducible, kv_precision=kv_precision)
    with LLM(tiny_bundle, settings) as llm:
        least = llm.engine.info.least_rows
        assert least == 1 + reproducible
        sequence = CacheSequence(llm.engine.pool)
        llm.engine.forward(np.arange(5), sequence, np.array([4]))
        computed = []
        for count in range(1, least + 1):
            llm.engine.decode([Step(sequence, np.arange(count))])
            computed.append(rows_of_last_step(llm.engine))
        assert computed == [least] * least


def rows_of_last_step(engine: Any) -> int:  # Any: what only this engine has
    """Ids that an engine gave its graph."""
    given = engine._inputs if engine.info.name == "openvino" else engine._parts[0]._own
    return int(given["input_ids"].size)
