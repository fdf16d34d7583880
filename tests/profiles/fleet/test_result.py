"""Figures of requests, counted by hand."""

from __future__ import annotations

import pytest

from edge.profiles.fleet.result import Spread, result_of
from edge.profiles.fleet.workload import Ask, Outcome


def ask(arrived: float, began: float, first: float, ended: float, tokens: int, outcome: Outcome = "answered") -> Ask:
    found = Ask(1, 1, 10, 100, tokens, arrived, earlier_tokens=60)
    found.began_s, found.first_s, found.ended_s = began, first, ended
    found.produced, found.outcome, found.cached_tokens = tokens, outcome, 50
    return found


def test_waits_speeds_and_hits_are_those_of_answered_requests() -> None:
    lost = ask(3, 3, 3, 3, 1, "broken")
    refused = ask(4, 4, 4, 4, 0, "refused")
    found = result_of([ask(0, 1, 2, 4, 5), ask(1, 1, 4, 5, 3), lost, refused], 10.0)
    assert (found.asked, found.answered, found.broken, found.refused) == (4, 2, 1, 1)
    assert found.tokens_s == pytest.approx(0.8)
    assert found.wait_s == Spread(0.5, 0, 1, 1)
    assert found.ttft_s == Spread(2.5, 2, 3, 3)
    assert found.rate == Spread(2, 2, 2, 2)
    assert found.hits == pytest.approx(0.5)
    assert found.turn_hits == pytest.approx(50 / 60)


def test_of_nothing_there_are_figures_all_the_same() -> None:
    found = result_of([], 10.0)
    assert found.asked == found.tokens == 0
    assert found.ttft_s == Spread(0, 0, 0, 0)
    assert found.hits == found.turn_hits == found.slow_rate == 0


def test_an_answer_of_one_token_has_no_speed() -> None:
    assert result_of([ask(0, 0, 1, 1, 1)], 10.0).rate == Spread(0, 0, 0, 0)
