"""Sources of drafts: asked while they pay, given up when they do not, and asked again for a hundredth of the time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edge.runtime.settings import SpeculationSettings
from edge.runtime.speculation import Acceptance, Drafter, StepCost
from edge.runtime.speculation.acceptance import SourceRecord
from edge.runtime.speculation.asking import EXPLORING, LONGEST, best_length
from edge.runtime.speculation.source import Proposal

STEP_MS = 10.0


class Counting:
    """Drafts of one kind: the text counts up, and `error` is how far its drafts are from that."""

    name = "counting"
    priors = (0.5, 0.9)

    def __init__(self, error: int, cost_ms: float, bucket: int = 0) -> None:
        self.error, self.cost, self.bucket = error, cost_ms, bucket
        self.ids: list[int] = []
        self.asked: list[int] = []
        self.closed = 0

    def extend(self, ids: Sequence[int]) -> None:
        self.ids += ids

    def costs_ms(self, most: int) -> list[float]:
        return [self.cost * count for count in range(1, most + 1)]

    def propose(self, count: int, forced: Sequence[int] = ()) -> Proposal:
        self.asked.append(count)
        begin = self.ids[-1] + len(forced) + 1 + self.error
        return Proposal(list(range(begin, begin + count)), [self.bucket] * count, self.cost * count)

    def close(self) -> None:
        self.closed += 1


def measured() -> StepCost:
    """One row takes STEP_MS; each one more a tenth of that."""
    cost = StepCost()
    for rows in (1, 2, 4, 8, 16) * 12:
        cost.record(rows, STEP_MS * (1 + 0.1 * (rows - 1)))
    return cost


def write(drafter: Drafter, steps: int) -> list[int]:
    """Let a text count up; return how many tokens each step had."""
    text, found = [0], []
    for _ in range(steps):
        draft = drafter.draft(1000)
        taken = 0
        while taken < len(draft) and draft[taken] == text[-1] + 1 + taken:
            taken += 1
        new = list(range(text[-1] + 1, text[-1] + 2 + taken))
        drafter.observe(new, len(draft))
        text += new
        found.append(len(new))
    return found


def drafting(source: Counting, acceptance: Acceptance | None = None) -> Drafter:
    return Drafter([0], [source], measured(), acceptance or Acceptance(), SpeculationSettings().max_draft)


def test_a_source_that_is_right_is_asked_for_more_and_more() -> None:
    source = Counting(0, 0.2)
    lengths = write(drafting(source), 60)
    assert source.asked[-1] == LONGEST
    assert lengths[-1] == LONGEST + 1


def test_a_source_that_is_wrong_costs_little_more_than_a_hundredth_of_the_time() -> None:
    source, steps = Counting(1, 2.0), 600
    lengths = write(drafting(source), steps)
    assert set(lengths) == {1}
    first = 12  # askings until it is known to be wrong: 0.7 with a weight of 3 ids falls below 0.1 after about 20 ids
    assert len(source.asked) <= first + EXPLORING * steps * STEP_MS / source.cost
    assert source.asked[-1] == 1  # it is asked again


def test_a_source_that_was_given_up_is_found_again_when_it_is_right() -> None:
    source = Counting(1, 0.5)
    drafter = drafting(source)
    write(drafter, 200)
    source.error = 0
    source.ids = [0]
    drafter.close()
    again = Counting(0, 0.5)
    acceptance = drafter._acceptance
    assert write(drafting(again, acceptance), 1500)[-1] > 1


def test_a_source_that_takes_longer_than_a_step_is_not_asked() -> None:
    source = Counting(0, 4 * STEP_MS)
    write(drafting(source), 3)
    assert source.asked == []


def test_chances_are_learned_by_bucket_and_in_all() -> None:
    record = SourceRecord((0.5, 0.9))
    for _ in range(200):
        record.learn(Proposal([1, 2], [0, 1]), [1, 3])
    assert record.chances([0])[0] == pytest.approx(1, abs=0.05)
    assert record.chances([1])[0] == pytest.approx(0, abs=0.06)
    assert record.chance == pytest.approx(0.5, abs=0.05)


def test_what_follows_a_wrong_id_teaches_nothing() -> None:
    record = SourceRecord((0.5, 0.9))
    record.learn(Proposal([1, 2], [0, 1]), [5, 2])
    assert record.chances([1]) == [pytest.approx(0.9)]


def test_the_best_length_weighs_tokens_against_rows_and_drafting() -> None:
    cost = measured()
    assert best_length([0.05] * 4, 1, cost)[0] < 1
    assert best_length([0.99] * 4, 1, cost)[1] == 4
    assert best_length([0.99] * 4, 1, cost, [STEP_MS * i for i in range(1, 5)])[0] < 1


def test_sources_hear_the_prompt_once_and_are_closed_once() -> None:
    source = Counting(0, 0.2)
    drafter = drafting(source)
    write(drafter, 5)
    assert source.ids[:3] == [0, 1, 2]
    drafter.close()
    drafter.close()
    assert source.closed == 1
