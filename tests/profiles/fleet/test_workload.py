"""What is asked for does not depend on how fast it is answered."""

from __future__ import annotations

from itertools import islice

import pytest

from edge.profiles.fleet.workload import Lengths, Workload, conversations
from edge.runtime.errors import SettingsError


def test_a_seed_and_a_client_say_what_is_asked() -> None:
    work = Workload(clients=3, turns=3, think_s=1.0)
    first = list(islice(conversations(work, 5, 1), 20))
    assert first == list(islice(conversations(work, 5, 1), 20))
    assert [c.turns for c in first] != [c.turns for c in islice(conversations(work, 6, 1), 20)]
    assert [c.turns for c in first] != [c.turns for c in islice(conversations(work, 5, 2), 20)]
    keys = {c.key for client in range(3) for c in islice(conversations(work, 5, client), 20)}
    assert len(keys) == 60


def test_lengths_gaps_and_pauses_are_as_asked_for() -> None:
    work = Workload(conversations_s=4.0, turns=2, think_s=0.5, user=Lengths(3, 5), answer=Lengths(7, 7))
    found = list(islice(conversations(work, 0), 2000))
    assert {turn.user_tokens for c in found for turn in c.turns} == {3, 4, 5}
    assert {turn.answer_tokens for c in found for turn in c.turns} == {7}
    assert all(c.turns[0].think_s == 0 for c in found)
    for mean, values in ((0.25, [c.gap_s for c in found]), (0.5, [c.turns[1].think_s for c in found])):
        error = mean / len(values) ** 0.5  # an exponential deviates by its mean
        assert sum(values) / len(values) == pytest.approx(mean, abs=4 * error)


@pytest.mark.parametrize(
    "wrong", [{}, {"clients": 1, "conversations_s": 1.0}, {"clients": 1, "turns": 0}, {"clients": 1, "think_s": -1.0}]
)
def test_what_cannot_be_asked_for_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="expected"):
        Workload(**wrong)  # type: ignore[arg-type]  # on purpose


def test_lengths_begin_at_one_token() -> None:
    with pytest.raises(SettingsError, match="lengths are 0 to 3"):
        Lengths(0, 3)
