"""From one row of logits to one token id.

In: a row of logits, settings, and the ids of prompt and answer so far. Out: an id. Knows nothing about models, text or
grammars; an id that a grammar forbids arrives as -inf and is never chosen.

The order is that of huggingface/transformers' generate (generation/utils.py, _get_logits_processor): logit bias,
repetition penalty, temperature, top-k, top-p, min-p, typical, then one draw. Presence and frequency penalties, which
transformers lacks, follow the repetition penalty; a grammar's mask follows all penalties. Top-k is cut before the
temperature is applied, which keeps the same tokens in fewer steps. Temperature 0 is greedy: only bias and penalties
apply.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edge.runtime.arrays import Ids, Logits
from edge.runtime.errors import DeviceError, SettingsError
from edge.runtime.settings import Sampling

Doubles = npt.NDArray[np.float64]


class Candidates(NamedTuple):
    """The tokens that may be drawn. The probability of one is its weight over the sum of all."""

    ids: Ids  # (C,) ascending
    weights: Doubles  # (C,) 1 for the best


class Drawn(NamedTuple):
    """A token that was drawn."""

    token_id: int
    margin: float  # how much larger or smaller the random number could have been for the same token; 0.5 at most


class Sampler:
    """The state of one answer: settings, the random generator, and counts of the ids so far.

    For every token: `process` the model's row, mask forbidden ids, `choose`, `observe`. Counts are updated token by
    token, so each costs the same at any length of context. Rows are (vocab_size,) float32. Raises SettingsError for a
    bias on an id outside the vocabulary.
    """

    def __init__(self, settings: Sampling, prompt_ids: Sequence[int], vocab_size: int) -> None:
        self._settings = settings
        self._rng = np.random.default_rng(settings.seed)
        bias = dict(settings.logit_bias)
        if bias and max(bias) >= vocab_size:
            raise SettingsError(
                f"logit_bias holds token id {max(bias)}, expected 0 to {vocab_size - 1}", param="logit_bias"
            )
        self._bias_ids = np.fromiter(bias.keys(), np.int64)
        self._bias = np.fromiter(bias.values(), np.float32)
        self._seen: npt.NDArray[np.bool_] | None = None  # (vocab,) whether an id is in prompt or answer
        if settings.repetition_penalty != 1:
            self._seen = np.zeros(vocab_size, np.bool_)
            self._seen[np.array(prompt_ids, np.int64)] = True
        self._counts: npt.NDArray[np.int32] | None = None  # (vocab,) how often an id is in the answer
        if settings.presence_penalty != 0 or settings.frequency_penalty != 0:
            self._counts = np.zeros(vocab_size, np.int32)

    def process(self, logits: Logits) -> Logits:
        """Return the row with bias and penalties: the very same array if there are none, otherwise a copy."""
        if not self._bias.size and self._seen is None and self._counts is None:
            return logits
        out = logits.copy()
        out[self._bias_ids] += self._bias
        if self._seen is not None:
            ids = np.flatnonzero(self._seen)
            out[ids] = penalize(out[ids], self._settings.repetition_penalty)
        if self._counts is not None:
            ids = np.flatnonzero(self._counts)
            out[ids] -= self._settings.presence_penalty + self._settings.frequency_penalty * self._counts[ids]
        return out

    def choose(self, processed: Logits) -> int:
        """Return the next id from a processed row: the first best one, or a draw. An entry of -inf is never drawn.

        A draw takes exactly one number from the random generator, whatever the row. So drafted tokens are verified by
        process, choose and observe on one row after another, as without drafts, until the chosen id is not the drafted
        one: the ids are those of the same seed without drafts. A draft d is accepted with probability p(d), and the id
        chosen instead follows p without d: for a draft without a distribution of its own, that is rejection sampling
        (Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding).
        """
        if self._settings.temperature == 0:
            return int(processed.argmax())
        return draw(truncate(processed, self._settings), self._rng.random()).token_id

    def skip(self, draws: int) -> None:
        """Become as after so many calls of `choose`, whose ids are known: each draw takes one random number."""
        if self._settings.temperature != 0:
            self._rng.random(draws)

    def observe(self, token_id: int) -> None:
        """Count a token as part of the answer."""
        if self._seen is not None:
            self._seen[token_id] = True
        if self._counts is not None:
            self._counts[token_id] += 1


def penalize(logits: Logits, penalty: float) -> Logits:
    """Divide logits of ids that have occurred by the penalty if they are positive, and multiply them otherwise.

    Like huggingface/transformers' RepetitionPenaltyLogitsProcessor.
    """
    return np.where(logits > 0, logits / penalty, logits * penalty)


def truncate(logits: Logits, settings: Sampling) -> Candidates:
    """Return the tokens within top-k, top-p, min-p and typical, at a temperature above 0; at least one always stays.

    Ties with the k-th best stay; of equally likely tokens at the edge of top-p, the lower ids stay. Each cut sees the
    probabilities that the previous one left.
    """
    ids: Ids | None = None  # None: all
    if 0 < settings.top_k < logits.size:
        ids = np.flatnonzero(logits >= kth_largest(logits, settings.top_k))
        logits = logits[ids]
    # In one array, since a second one of the vocabulary's size would cost more than the arithmetic.
    weights = logits.astype(np.float64)
    weights -= weights.max()
    with np.errstate(over="ignore"):  # a tiny temperature: everything below the best becomes -inf
        weights /= settings.temperature
    np.exp(weights, out=weights)
    if settings.top_p < 1:
        ids, weights = _pick(ids, weights, nucleus(weights, settings.top_p))
    if settings.min_p > 0:
        ids, weights = _pick(ids, weights, np.flatnonzero(weights >= settings.min_p))
    if settings.typical_p < 1:
        ids, weights = _pick(ids, weights, typical(weights, settings.typical_p))
    return Candidates(np.arange(weights.size) if ids is None else ids, weights)


def draw(candidates: Candidates, number: float) -> Drawn:
    """Draw with a random number from [0, 1). `candidates.weights` are used up."""
    cumulative = np.cumsum(candidates.weights, out=candidates.weights)
    total = cumulative[-1]
    place = number * total
    index = int(np.searchsorted(cumulative, place, side="right"))  # "right" steps over candidates of weight 0
    below = cumulative[index - 1] if index else 0.0
    return Drawn(int(candidates.ids[index]), float(min(place - below, cumulative[index] - place) / total))


def nucleus(weights: Doubles, mass: float) -> Ids:
    """Return ascending indices of the fewest largest weights that hold the share `mass` (< 1) of all.

    weights: (C,), 1 for the best. Of equal weights at the edge, lower indices come first.
    """
    needed = mass * weights.sum()
    order, cumulative = np.arange(0), weights
    for some in _from_the_top(weights):
        order = some[np.argsort(-weights[some], kind="stable")]
        cumulative = np.cumsum(weights[order])
        if cumulative[-1] >= needed:
            break
    return np.sort(order[: np.searchsorted(cumulative, needed) + 1])


def typical(weights: Doubles, mass: float) -> Ids:
    """Return ascending indices of the weights with a surprise nearest to the entropy that hold `mass` (< 1) of all.

    Meister et al. 2022, Locally Typical Sampling; ties stay, as in huggingface/transformers' TypicalLogitsWarper.
    weights: (C,), 1 for the best.
    """
    share = weights / weights.sum()
    distance = np.maximum(share, np.finfo(np.float64).tiny)
    np.log(distance, out=distance)  # the surprise, negative
    distance -= np.einsum("i,i", share, distance)  # not @, whose threads would fight with the engine's
    np.abs(distance, out=distance)
    some = np.arange(0)
    for some in _from_the_top(weights):
        if share[some].sum() >= mass:
            break
    # Others may be nearer than the farthest of these; none beyond it is needed.
    near = np.flatnonzero(distance <= distance[some].max())
    order = near[np.argsort(distance[near])]
    last = min(int(np.searchsorted(np.cumsum(share[order]), mass)), order.size - 1)
    return np.flatnonzero(distance <= distance[order[last]])


def kth_largest(logits: Logits, k: int) -> np.float32:
    """Return the k-th largest value of a row, k from 1 to its size."""
    width = 128
    blocks = logits.size // width
    if blocks > k:
        # k blocks, and so k values, reach the k-th largest of the blocks' maxima: one pass, not a partition of all.
        maxima = logits[: blocks * width].reshape(blocks, width).max(axis=1)
        logits = logits[logits >= np.partition(maxima, -k)[-k]]
    kth: np.float32 = np.partition(logits, -k)[-k]
    return kth


def greedy_margin(logits: Logits) -> float:
    """Return how far the best logit is above the second best; 0 for a tie, inf if nothing else is possible."""
    best = int(logits.argmax())
    rest = [part.max() for part in (logits[:best], logits[best + 1 :]) if part.size]
    return float(logits[best]) - float(max(rest, default=-np.inf))


def _pick(ids: Ids | None, weights: Doubles, inside: Ids) -> tuple[Ids, Doubles]:
    return inside if ids is None else ids[inside], weights[inside]


def _from_the_top(weights: Doubles) -> Iterator[Ids]:
    """Yield growing sets of the largest weights, then all: a small one is mostly enough, and sorted far faster."""
    for floor in (1e-2, 1e-3, 1e-4, 1e-5):
        yield np.flatnonzero(weights >= floor)
    yield np.arange(weights.size)


def check_finite(row: Logits) -> None:
    """Raise DeviceError if an engine's logits (vocab,) are of no use for choosing tokens or computing likelihoods.

    That is, if one is NaN or infinite, or all are -inf; -inf on some of them is a mask.
    """
    if not math.isfinite(highest := float(row.max())):  # a NaN anywhere is the maximum
        raise DeviceError(
            f"the engine computed logits of {highest}: a number was too large for the precision it computes with, or "
            "the weights are damaged; run edge verify, or load with inference_precision f32"
        )
