"""A packed matrix of zeros, in the form that is asked for."""

from __future__ import annotations

import numpy as np

from edge.export.tensors import PackedTensor

ROWS, COLUMNS = 2, 256


def packed(bits: int, *, signed: bool, group_size: int, zero_point: bool = False) -> PackedTensor:
    groups = COLUMNS // group_size
    return PackedTensor(
        (ROWS, COLUMNS),
        bits,
        signed,
        group_size,
        np.zeros(ROWS * COLUMNS * bits // 8, np.uint8),
        np.ones((ROWS, groups), np.float16),
        np.zeros(-(-ROWS * groups * bits // 8), np.uint8) if zero_point else None,
    )
