"""Speed beside the bandwidth of memory."""

from __future__ import annotations

import pytest

from edge.profiles.roofline import Roofline, mean_context


def test_one_answer_that_reads_its_weights_and_cache() -> None:
    """By hand: 4 GB + 1 GB a token at 8 tok/s are 40 GB/s; 50 GB/s would give 10 tok/s."""
    found = Roofline(4 * 10**9, 10**9, 8.0, 50.0)
    assert (found.gbs, found.share, found.most_tokens_per_second) == (40.0, 0.8, 10.0)
    assert found.to_json() == {
        "weight_bytes": 4 * 10**9,
        "cache_bytes": 10**9,
        "read_gbs": 40.0,
        "machine_gbs": 50.0,
        "share": 0.8,
        "most_tokens_per_second": 10.0,
    }


def test_several_answers_share_the_weights_of_a_step() -> None:
    """By hand: 4 answers at 32 tok/s together take 8 steps a second, each of 4 GB + 4 x 0.25 GB."""
    found = Roofline(4 * 10**9, 10**9, 32.0, 50.0, sequences=4)
    assert (found.gbs, found.share, found.most_tokens_per_second) == (40.0, 0.8, 40.0)


@pytest.mark.parametrize(("prompt", "new"), [(32, 2), (7, 5), (1, 65)])
def test_the_mean_context_is_that_of_the_steps_after_the_first_token(prompt: int, new: int) -> None:
    """A step reads what it has just written as well: its own token is part of its context."""
    steps = [prompt + index for index in range(1, new)]  # the first token comes from the prompt's own forward
    assert mean_context(prompt, new) == sum(steps) / len(steps)
