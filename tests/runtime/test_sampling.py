"""Samplers against transformers' logits processors and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from edge.runtime.errors import SettingsError
from edge.runtime.sampling import Sampling, penalize, sample, softmax, truncate

LOGITS = (np.random.default_rng(0).normal(size=500) * 3).astype(np.float32)


def test_greedy_is_the_first_best() -> None:
    logits = np.array([0, 3, 3, 1], np.float32)
    assert sample(logits, [], Sampling(), np.random.default_rng()) == 1


@pytest.mark.parametrize(
    ("settings", "warpers"),
    [
        (Sampling(0.7), [TemperatureLogitsWarper(0.7)]),
        (Sampling(1.0, top_k=7), [TopKLogitsWarper(7)]),
        (Sampling(1.0, top_p=0.6), [TopPLogitsWarper(0.6)]),
        (Sampling(1.0, min_p=0.05), [MinPLogitsWarper(0.05)]),
        (
            Sampling(0.8, top_k=50, top_p=0.8, min_p=0.02),
            [TemperatureLogitsWarper(0.8), TopKLogitsWarper(50), TopPLogitsWarper(0.8), MinPLogitsWarper(0.02)],
        ),
    ],
    ids=["temperature", "top-k", "top-p", "min-p", "all"],
)
def test_distribution_equals_transformers(settings: Sampling, warpers: list[object]) -> None:
    ours = softmax(truncate(LOGITS.astype(np.float64) / settings.temperature, settings))
    scores = LogitsProcessorList(warpers)(torch.zeros(1, 1, dtype=torch.long), torch.tensor(LOGITS).double()[None])
    np.testing.assert_allclose(ours, torch.softmax(scores, -1)[0].numpy(), atol=1e-12)


def test_penalty_equals_transformers() -> None:
    seen = [3, 99, 3, 400, 12]
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([seen]), torch.tensor(LOGITS)[None])[0].numpy()
    before = LOGITS.copy()
    np.testing.assert_allclose(penalize(LOGITS, seen, 1.3), theirs, rtol=1e-6)
    np.testing.assert_array_equal(LOGITS, before)


def test_draws_follow_the_distribution() -> None:
    """20,000 draws of 500 ids: each count within 5 standard deviations."""
    settings, rng = Sampling(1.0, top_p=0.9), np.random.default_rng(5)
    expected = softmax(truncate(LOGITS.astype(np.float64), settings))
    counts = np.bincount([sample(LOGITS, [], settings, rng) for _ in range(20_000)], minlength=500)
    deviation = np.sqrt(20_000 * expected * (1 - expected))
    assert (np.abs(counts - 20_000 * expected) <= 5 * deviation + 1e-9).all()


def test_the_best_token_always_stays() -> None:
    settings = Sampling(1.0, top_k=1, top_p=1e-9, min_p=1.0)
    assert {sample(LOGITS, [], settings, np.random.default_rng(i)) for i in range(20)} == {int(LOGITS.argmax())}


def test_same_seed_same_draws() -> None:
    settings = Sampling(1.5, seed=11)
    a, b = (
        [sample(LOGITS, [], settings, rng) for _ in range(50)] for rng in (settings.generator(), settings.generator())
    )
    assert a == b


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")), ("top_k", -1),
        ("top_p", 0.0), ("top_p", 1.5), ("min_p", -1.0), ("repetition_penalty", 0.0), ("seed", -1),
    ],
)  # fmt: skip
def test_values_outside_the_range(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"{name} is {value}, expected"):
        Sampling(**{name: value})  # type: ignore[arg-type]
