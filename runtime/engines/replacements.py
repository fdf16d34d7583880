"""Embeddings of new tokens that rows replace, as graphs take them.

In: the embeddings of a step. Out: a mask of its tokens, and rows. Knows nothing about engines.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge.runtime.arrays import Hidden
from edge.runtime.engines.engine import Embedding

Mask = npt.NDArray[np.bool_]


def replacements(embeddings: Sequence[Embedding], count: int, width: int) -> tuple[Mask, Hidden]:
    """Return which of `count` tokens are replaced, (count, 1), and by what, (count, width).

    Without any embeddings both have a single row, which stands for all tokens: text costs no memory.
    """
    size = count if embeddings else 1
    mask, rows = np.zeros((size, 1), np.bool_), np.zeros((size, width), np.float32)
    for start, own in embeddings:
        mask[start : start + len(own)] = True
        rows[start : start + len(own)] = own
    return mask, rows
