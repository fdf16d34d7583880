"""From one row of logits to one token id, as pure functions.

In: a logits row, the ids so far, settings, a random generator. Out: an id. Knows nothing about models or text.

Order, as in huggingface/transformers' generate: repetition penalty, temperature, top-k, top-p, min-p, then one draw.
Temperature 0 is greedy: the penalty applies, nothing else does.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.runtime.errors import SettingsError

Logits = npt.NDArray[np.float32]  # (vocab,)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen. Raises SettingsError for a value outside its range."""

    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # keep the k best; 0 keeps all
    top_p: float = 1.0  # keep the smallest set of best tokens with this much probability
    min_p: float = 0.0  # keep tokens with at least this share of the best one's probability
    repetition_penalty: float = 1.0  # > 1 makes ids that have occurred less likely (Keskar et al. 2019, CTRL)
    seed: int | None = None  # None draws a fresh one

    def __post_init__(self) -> None:
        checks = [
            ("temperature", self.temperature, math.isfinite(self.temperature) and self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0,
                "above 0",
            ),
            ("seed", self.seed, self.seed is None or self.seed >= 0, "0 or more"),
        ]
        for name, value, fine, expected in checks:
            if not fine:
                raise SettingsError(f"{name} is {value}, expected {expected}")

    def generator(self) -> np.random.Generator:
        """The random generator of one answer."""
        return np.random.default_rng(self.seed)


def sample(logits: Logits, seen: Collection[int], settings: Sampling, rng: np.random.Generator) -> int:
    """Choose the next id; `seen` are the ids of prompt and answer so far."""
    if settings.repetition_penalty != 1.0:
        logits = penalize(logits, seen, settings.repetition_penalty)
    if settings.temperature == 0:
        return int(logits.argmax())
    candidates = truncate(logits.astype(np.float64) / settings.temperature, settings)
    probabilities = softmax(candidates)
    return int(np.searchsorted(np.cumsum(probabilities), rng.random() * probabilities.sum(), side="right"))


def penalize(logits: Logits, seen: Collection[int], penalty: float) -> Logits:
    """A copy in which logits of seen ids are divided by the penalty where positive, multiplied where negative."""
    ids = np.fromiter(set(seen), np.int64)
    out = logits.copy()
    out[ids] = np.where(out[ids] > 0, out[ids] / penalty, out[ids] * penalty)
    return out


def truncate(logits: npt.NDArray[np.float64], settings: Sampling) -> npt.NDArray[np.float64]:
    """Logits with everything outside top-k, top-p and min-p at -inf; the best token always stays."""
    if 0 < settings.top_k < logits.size:
        kth = np.partition(logits, -settings.top_k)[-settings.top_k]
        logits = np.where(logits < kth, -np.inf, logits)
    if settings.top_p < 1:
        order = np.argsort(-logits, kind="stable")
        probabilities = softmax(logits)[order]
        before = np.cumsum(probabilities) - probabilities
        logits = logits.copy()
        logits[order[before >= settings.top_p]] = -np.inf
    if settings.min_p > 0:
        logits = np.where(logits < logits.max() + math.log(settings.min_p), -np.inf, logits)
    return logits


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probabilities of one row."""
    exp = np.exp(logits - logits.max())
    probabilities: npt.NDArray[np.float64] = exp / exp.sum()
    return probabilities
