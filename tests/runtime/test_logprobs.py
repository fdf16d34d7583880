"""Log-probabilities against torch's log-softmax in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge.runtime.logprobs import TokenLogprob, token_logprob

LOGITS = (np.random.default_rng(3).normal(size=5000) * 4).astype(np.float32)
EXPECTED = torch.log_softmax(torch.tensor(LOGITS).double(), -1).numpy()


@pytest.mark.parametrize("token_id", [0, 17, int(LOGITS.argmax()), 4999])
@pytest.mark.parametrize("top", [0, 1, 5, 20, 5000, 6000])
def test_equals_log_softmax(token_id: int, top: int) -> None:
    found = token_logprob(LOGITS, token_id, top)
    assert found.token_id == token_id
    # 5,000 additions in float64, each off by at most 2^-53 of the sum: 6e-13
    assert found.logprob == pytest.approx(EXPECTED[token_id], abs=1e-12)
    best = np.argsort(-EXPECTED, kind="stable")[:top]
    assert [i for i, _ in found.top] == best.tolist()
    np.testing.assert_allclose([value for _, value in found.top], EXPECTED[best], atol=1e-12)


def test_ties_lower_id_first() -> None:
    found = token_logprob(np.array([1, 3, 2, 3, 3, 2], np.float32), 2, 4)
    assert [i for i, _ in found.top] == [1, 3, 4, 2]


def test_all_of_them_are_a_distribution() -> None:
    found = token_logprob(LOGITS, 0, LOGITS.size)
    assert sum(np.exp(value) for _, value in found.top) == pytest.approx(1, abs=1e-12)


def test_large_logits_do_not_overflow() -> None:
    found = token_logprob(np.array([1e30, 1e30, -1e30], np.float32), 0, 1)
    assert found == TokenLogprob(0, found.logprob, ((0, found.logprob),))
    assert found.logprob == pytest.approx(-np.log(2))


def test_the_row_is_not_changed() -> None:
    before = LOGITS.copy()
    token_logprob(LOGITS, 1, 5)
    np.testing.assert_array_equal(LOGITS, before)
