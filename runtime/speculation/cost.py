"""What a forward of several rows costs on this engine, learned from its steps.

In: rows and milliseconds of each decode step. Out: the milliseconds that a step of n rows will take. Knows nothing
about engines or drafts.

A step's cost is modelled as level × ratio(rows). The level is the present cost of one row: it follows the growth of the
context and the load of the machine within a few steps. The ratios change little, so they are kept for longer.

A step that has other rows than the one before may cost more: OpenVINO's CPU plugin then prepares every operation anew,
which takes 3.8 ms of a step of 10 for 30 small blocks, and 0.2 a block of GLM-4-9B's. It is learned from plain steps,
of which there are both kinds, and charged to the drafts that have plain steps before and after them.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

MAX_ROWS = 64

# What one more row adds, in costs of one row, before there are measurements. Measured: between 0.1 (a model of 0.5 B
# parameters) and 0.03 (four layers of the 9 B) up to 8 rows, and 0.07 at 32.
_PRIOR_SLOPE = 0.08
_PRIOR_WEIGHT = 128.0  # of the prior slope, as Σ(rows - 1)²: two samples of 9 rows
_LINE_WEIGHT = 2.0  # of the line in a ratio, in samples of exactly that many rows
_RECENT = 9  # samples for a median
_LEVEL_AGE = 32  # steps after which one row's cost no longer describes the present
_RATIO_AGE = 2048  # steps after which a ratio is forgotten, so that a slow spell does not count for ever
_NEAR = 4  # steps between two that are compared, as the level moves
_FEW_CHANGES = 3  # samples before it is believed that a change of rows costs anything, ...
_LEAST_CHANGE = 0.05  # ... and this share of one row's cost, which is less than noise may pretend
_CLIP = 2.0  # a sample is limited to this multiple, and to this fraction, of the expected value


class StepCost:
    """Cost of a decode step by its number of rows: one object for each engine, shared by its answers."""

    def __init__(self, least_rows: int = 1) -> None:
        """least_rows: that every step computes (`EngineInfo`), so that so many cost what one does."""
        self._least_rows = least_rows
        self._step = 0
        self._size = 1  # of the last step (`_size_of`)
        self._level: deque[float] = deque(maxlen=_RECENT)  # ms of one row, from steps of any size
        self._single: deque[float] = deque(maxlen=_RECENT)  # ms of one row, from steps of one row
        self._single_at = -_LEVEL_AGE  # the step of the last of them
        self._still: deque[float] = deque(maxlen=_RECENT)  # ms of one row, from steps after others of one row
        self._still_at = 0  # the step of the last of them
        self._changes: deque[tuple[int, float]] = deque(maxlen=_RECENT)  # (step, ms more) of one row after several
        self._change_ms = 0.0
        self._ratios: dict[int, deque[tuple[int, float]]] = {}  # (step, ratio) by rows
        self._table = self._fit()
        self._level_ms = 1.0

    def record(self, rows: int, ms: float) -> None:
        """Learn from one step. More than 64 rows are a prefill, which says nothing about steps."""
        assert rows >= 1, f"a step of {rows} rows"
        assert 0 < ms < math.inf, f"a step of {ms} ms"
        if rows > MAX_ROWS:
            return
        self._step += 1
        size = self._size_of(rows)
        is_change, self._size = size != self._size, size
        if size == 1:
            self._learn_change(ms, is_change=is_change)
        if is_change:
            ms = max(ms - self._change_ms, ms / _CLIP)
        if size == 1:
            self._single.append(ms)
            self._single_at = self._step
        elif self._step - self._single_at < _LEVEL_AGE:
            self._record_ratio(size, ms / median(self._single))
        self._level.append(ms / self._table[size])
        self._level_ms = median(self._level)

    def ms(self, rows: int) -> float:
        """Return the expected ms of the next step, with 1 to 64 rows. At first, one row costs 1.

        Never fewer for more rows, but for as many as the last step had, which need no change.
        """
        assert 1 <= rows <= MAX_ROWS, f"the cost of {rows} rows"
        size = self._size_of(rows)
        there_and_back = 0.0 if size in (1, self._size) else 2 * self._change_ms
        return self._level_ms * self._table[size] + there_and_back

    def _size_of(self, rows: int) -> int:
        """Return the rows that are computed, counting those of every step as one."""
        return max(rows + 1 - self._least_rows, 1)

    def _learn_change(self, ms: float, *, is_change: bool) -> None:
        """Compare a step of one row with those that came after their like."""
        if not is_change:
            self._still.append(ms)
            self._still_at = self._step
        elif self._still and self._step - self._still_at <= _NEAR:
            self._changes.append((self._step, ms - median(self._still)))
        self._forget_old(self._changes)
        self._change_ms = 0.0
        if len(self._changes) >= _FEW_CHANGES:
            found = median(more for _, more in self._changes)
            self._change_ms = found if found > _LEAST_CHANGE * median(self._still) else 0.0

    def _forget_old(self, samples: deque[tuple[int, float]]) -> None:
        while samples and samples[0][0] < self._step - _RATIO_AGE:
            samples.popleft()

    def _record_ratio(self, rows: int, ratio: float) -> None:
        if rows not in self._ratios:  # an engine's first step of a new shape includes setting it up
            self._ratios[rows] = deque(maxlen=_RECENT)
            return
        expected = self._table[rows]
        self._ratios[rows].append((self._step, min(max(ratio, expected / _CLIP), expected * _CLIP)))
        self._table = self._fit()

    def _fit(self) -> list[float]:
        """Return ratios by rows ([0] is unused): medians where there are samples, pulled to 1 + slope × (rows - 1).

        Between samples they are interpolated, and after the last they rise with that slope.
        """
        medians: list[tuple[int, int, float]] = []  # (rows, samples, ratio)
        above, below = _PRIOR_WEIGHT * _PRIOR_SLOPE, _PRIOR_WEIGHT
        for rows, samples in sorted(self._ratios.items()):
            self._forget_old(samples)
            if samples:
                count, middle = len(samples), median(ratio for _, ratio in samples)
                medians.append((rows, count, middle))
                above += count * (rows - 1) * (middle - 1)
                below += count * (rows - 1) ** 2
        slope = max(above / below, 0.0)
        table = [1.0, 1.0]
        for rows, count, middle in medians:
            ratio = (count * middle + _LINE_WEIGHT * (1 + slope * (rows - 1))) / (count + _LINE_WEIGHT)
            begin, steps = table[-1], rows - len(table) + 1
            rise = max(ratio - begin, 0.0) / steps
            table += [begin + rise * i for i in range(1, steps + 1)]
        end = table[-1]
        return table + [end + slope * i for i in range(1, MAX_ROWS + 2 - len(table))]
