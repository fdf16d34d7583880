"""What is kept of rows of logits: the most probable tokens, and samples of all others.

In: logits. Out: `Rows`. Knows nothing about models or files.

A row of logits has as many numbers as the vocabulary, so of each only this is kept: the `top` most probable tokens with
their log-probabilities, the probability of all others together (the tail), and `samples` tokens drawn from the tail in
proportion to their probability. KL(p || q) is then a sum over the top, and over the tail an average that has no bias:

    sum_top p (log p - log q)  +  tail / samples * sum_samples (log p - log q)

How far it may be off is known from the samples' own spread. On SmolLM2-135M with int4-asym-g64 and 2,044 tokens (KLD
0.297), in % of the KLD that whole rows give, with three seeds:

    top  samples  KB/token  probability of the tail  error                standard error
     64       32       0.8                    9.0 %  -0.26 +0.25 -0.10               0.18
    128       32       1.3                    6.3 %  -0.03 -0.20 -0.03               0.13
    128      128       2.0                    6.3 %  +0.07 +0.04 +0.04               0.07
    256      128       3.0                    4.1 %  +0.00 -0.03 -0.03               0.05

and it falls with the square root of the tokens. Without samples a tail would have to be compared in groups of tokens,
which bounds the KLD from below (log-sum inequality): after 128 tokens, that misses 10.8 % of it with one group, 8.0 %
with 256 and 5.2 % with 1,024; after 1,024 tokens still 2.3 % with 256.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from edge.export.tensors import Float32Array

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ReferenceSettings:
    """What is kept of each row."""

    first_scored: int = 0  # row of each window; rows before it only are context (llama-perplexity: half a window)
    top: int = 128  # most probable tokens
    samples: int = 128  # of the tail
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """What is kept of rows of logits. Log-probabilities are natural logarithms; any number of leading dimensions."""

    top_ids: Int32Array  # (..., top), most probable first
    top_logprobs: Float32Array  # (..., top)
    tail: Float32Array  # (...), probability of all tokens that are not in the top
    sample_ids: Int32Array  # (..., samples), drawn from the tail
    sample_logprobs: Float32Array  # (..., samples)
    next_logprobs: Float32Array  # (...), of the token that follows in the text
    next_ranks: Int32Array  # (...), tokens that are more probable than the one that follows

    def __getitem__(self, place: int | slice | tuple[int | slice, ...]) -> Rows:
        return Rows(*(getattr(self, field.name)[place] for field in fields(self)))


def keep(logits: Float32Array, next_ids: npt.NDArray[np.int64], top: int, samples: int, seed: list[int]) -> Rows:
    """What is kept of rows of logits.

    logits: (R, vocab). next_ids: (R,). top: at most vocab; then there is no tail, and no samples. The drawing is
    systematic: from one random start in equal steps of probability, which has no bias and spreads over the tail.
    """
    count, vocab = logits.shape
    samples = 0 if top == vocab else samples
    starts: npt.NDArray[np.float64] = np.random.default_rng(seed).random(size=(count,))
    log_total = log_sum_exp(logits)
    top_ids, sample_ids = np.empty((count, top), np.int32), np.empty((count, samples), np.int32)
    tail = np.zeros(count, np.float32)
    for row in range(count):
        values = logits[row]
        best = np.sort(np.argpartition(values, vocab - top)[vocab - top :])  # of equal ones the lower id first
        top_ids[row] = best[np.argsort(-values[best], kind="stable")]
        if samples:
            probabilities = np.exp(values - log_total[row])  # float64
            probabilities[top_ids[row]] = 0.0
            sums = np.cumsum(probabilities)
            tail[row] = sums[-1]
            wanted = (np.arange(samples) + starts[row]) * (sums[-1] / samples)
            sample_ids[row] = np.minimum(np.searchsorted(sums, wanted, "right"), vocab - 1)
    next_logits = np.take_along_axis(logits, next_ids[:, None], 1)
    return Rows(
        top_ids,
        _logprobs(logits, top_ids, log_total),
        tail,
        sample_ids,
        _logprobs(logits, sample_ids, log_total),
        (next_logits[:, 0] - log_total).astype(np.float32),
        np.count_nonzero(logits > next_logits, axis=1).astype(np.int32),
    )


def log_sum_exp(logits: Float32Array) -> npt.NDArray[np.float64]:
    """(R, vocab) -> (R,): the logarithm of the sum over each row, exponentials in float32 and their sum in float64."""
    best: Float32Array = np.max(logits, axis=1)
    shifted = logits - best[:, None]
    np.exp(shifted, out=shifted)
    total: npt.NDArray[np.float64] = best + np.log(shifted.sum(axis=1, dtype=np.float64))
    return total


def _logprobs(logits: Float32Array, ids: Int32Array, log_total: npt.NDArray[np.float64]) -> Float32Array:
    return (np.take_along_axis(logits, ids.astype(np.int64), 1) - log_total[:, None]).astype(np.float32)
