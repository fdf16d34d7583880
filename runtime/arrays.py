"""Array types that layers hand to each other; their shapes are noted where they are used. Knows nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]  # token ids, positions, row numbers
Logits = npt.NDArray[np.float32]  # (vocab,) or (rows, vocab)
Hidden = npt.NDArray[np.float32]  # (tokens, hidden_size)
Array = npt.NDArray[Any]  # of any dtype
