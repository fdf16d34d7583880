"""Tables of cos and sin for attention, which takes those of a token from the row that it is told.

In: a `ModelSpec`, and positions of new tokens. Out: tables, and the row of each token. Knows nothing about sessions.

A row for each place in the context comes first, so text needs none of its own. Where positions are beyond them, do not
follow each other, or are several for a token, a step writes the rows that it needs behind them: onnxruntime reads only
the first row's number of a sequence that begins with this step, and takes it that the others follow (seen with 1.23.0
and 1.32.0).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge.runtime.arrays import Array, Ids
from edge.runtime.rotary import FloatKind, cos_and_sin, one_row
from edge.runtime.spec import ModelSpec


class Turns:
    """The tables, (length + written rows, rotary_dim / 2), which are others after they had to grow."""

    def __init__(self, spec: ModelSpec, length: int, kind: FloatKind) -> None:
        self._spec, self._length = spec, length
        self.tables: tuple[Array, ...] = cos_and_sin(np.arange(length), spec, kind)

    def rows(self, pasts: Sequence[int], count: int, positions: Sequence[Ids | None]) -> Ids:
        """Return the rows (B, count) of new tokens after `pasts` of each sequence.

        positions: of each, None for text; fewer than `count` where a step is padded.
        """
        found = np.array(pasts, np.int64)[:, None] + np.arange(count)
        begin = self._length
        for own, row in zip(positions, found, strict=True):
            if own is None:
                continue
            same = one_row(own)
            if same is not None and same[0] + count <= self._length and (np.diff(same) == 1).all():
                row[:] = same[0] + np.arange(count)
            else:
                row[:] = begin + np.arange(count)
                self._write(begin, count, own)
                begin += count
        return found

    def _write(self, begin: int, count: int, positions: Ids) -> None:
        """Put what positions turn by into rows behind the context's; those that a step is padded with stay any."""
        if begin + count > len(self.tables[0]):
            more = begin + count - len(self.tables[0])
            self.tables = tuple(np.pad(table, ((0, more), (0, 0))) for table in self.tables)
        end = begin + positions.shape[-1]
        for table, values in zip(self.tables, cos_and_sin(positions, self._spec), strict=True):
            table[begin:end] = values
