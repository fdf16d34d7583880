"""How far computed logits, or a layer's output, are from what they should be.

In: two arrays of the same shape. Out: one number. Knows nothing about bundles or engines.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge.runtime.arrays import Logits

# Largest `distance` that float32 kernels can make by adding in another order. One rounding is 6e-8; a few hundred
# products in a row with widths in the thousands stay below 1e-4. A wrong weight shows far above 1e-2.
FLOAT32_BOUND = 1e-3


def distance(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Largest difference, relative to the largest expected value. NaN where one of them holds a NaN."""
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-30))


def kl_divergence(reference: Logits, other: Logits) -> float:
    """Mean over rows of KL(reference || other), nats/token."""
    p, q = _log_softmax(reference), _log_softmax(other)
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    log_probabilities: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_probabilities
