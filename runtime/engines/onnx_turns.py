"""Tables of cos and sin for attention, which takes those of a token from the row that it is told.

In: a `ModelSpec`, and positions of new tokens. Out: tables, and the row of each token. Knows nothing about sessions.

A row for each place in the context comes first, so text needs none of its own. Where a token's position is beyond
them, or is not one but several, a step writes the row that it needs behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge.runtime.arrays import Array, Ids
from edge.runtime.rotary import cos_and_sin, one_row
from edge.runtime.spec import ModelSpec


class Turns:
    """The tables, (length + written rows, rotary_dim / 2), which are others after they had to grow."""

    def __init__(self, spec: ModelSpec, length: int, kind: type[np.floating[Any]]) -> None:
        self._spec, self._length = spec, length
        self.tables: tuple[Array, ...] = cos_and_sin(np.arange(length), spec, kind)

    def rows(self, pasts: Sequence[int], count: int, positions: Sequence[Ids | None]) -> Ids:
        """Return the rows (B, count) of new tokens after `pasts` of each sequence.

        positions: of each, None for text. Tokens that a step is padded with turn as the last one does.
        """
        found = np.array(pasts, np.int64)[:, None] + np.arange(count)
        begin = self._length
        for own, row in zip(positions, found, strict=True):
            if own is None:
                continue
            same = one_row(own)
            if same is None or same.max() >= self._length:
                same = np.arange(begin, begin + own.shape[-1])
                begin += same.size
                self._write(same, own)
            row[:] = np.pad(same, (0, count - same.size), mode="edge")
        return found

    def _write(self, rows: Ids, positions: Ids) -> None:
        """Put what positions turn by into rows behind the context's."""
        end = int(rows[-1]) + 1
        if end > len(self.tables[0]):
            self.tables = tuple(np.pad(table, ((0, end - len(table)), (0, 0))) for table in self.tables)
        for table, values in zip(self.tables, cos_and_sin(positions, self._spec), strict=True):
            table[rows] = values
