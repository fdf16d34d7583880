"""Log-probabilities of a token and of its best alternatives.

In: the model's own row of logits, before bias, penalties, temperature and grammar. Out: natural logarithms, in float64.
Knows nothing about sampling settings or text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge.runtime.arrays import Logits
from edge.runtime.sampling import kth_largest


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of a token, and those of the best ones."""

    token_id: int
    logprob: float  # natural logarithm of the probability
    top: tuple[tuple[int, float], ...]  # (id, logprob), best first; of equal ones, the lower id first


def token_logprob(logits: Logits, token_id: int, top: int) -> TokenLogprob:
    """Return the log-softmax of the model's own row, at a token and at the `top` best ones.

    logits: (vocab,) as the model gave them: before bias, penalties, temperature and grammar. top: 0 or more, cut to the
    size of the vocabulary.
    """
    best = float(logits.max())
    weights = logits.astype(np.float64)
    weights -= best
    log_total = float(np.log(np.exp(weights, out=weights).sum()))  # of all weights, the best one's being 1
    count = min(top, logits.size)
    ids = np.flatnonzero(logits >= kth_largest(logits, count)) if count else np.arange(0)
    ids = ids[np.argsort(-logits[ids], kind="stable")][:count]
    return TokenLogprob(
        token_id,
        float(logits[token_id]) - best - log_total,
        tuple((int(i), float(logits[i]) - best - log_total) for i in ids),
    )
