"""What a forward of several rows costs on this engine, learned from its steps.

In: rows and milliseconds of each decode step. Out: the milliseconds that a step of n rows will take. Knows nothing
about engines or drafts.

A step's cost is modelled as level × ratio(rows). The level is the present cost of one row: it follows the growth of the
context and the load of the machine within a few steps. The ratios change little, so they are kept for longer.
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
_CLIP = 2.0  # a sample is limited to this multiple, and to this fraction, of the expected value


class StepCost:
    """Cost of a decode step by its number of rows: one object for each engine, shared by its answers."""

    def __init__(self) -> None:
        self._step = 0
        self._level: deque[float] = deque(maxlen=_RECENT)  # ms of one row, from steps of any size
        self._single: deque[float] = deque(maxlen=_RECENT)  # ms of one row, from steps of one row
        self._single_at = -_LEVEL_AGE  # the step of the last of them
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
        if rows == 1:
            self._single.append(ms)
            self._single_at = self._step
        elif self._step - self._single_at < _LEVEL_AGE:
            self._record_ratio(rows, ms / median(self._single))
        self._level.append(ms / self._table[rows])
        self._level_ms = median(self._level)

    def ms(self, rows: int) -> float:
        """Return the expected ms of a step of 1 to 64 rows, never fewer for more rows. At first, one row costs 1."""
        assert 1 <= rows <= MAX_ROWS, f"the cost of {rows} rows"
        return self._level_ms * self._table[rows]

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
        oldest = self._step - _RATIO_AGE
        medians: list[tuple[int, int, float]] = []  # (rows, samples, ratio)
        above, below = _PRIOR_WEIGHT * _PRIOR_SLOPE, _PRIOR_WEIGHT
        for rows, samples in sorted(self._ratios.items()):
            while samples and samples[0][0] < oldest:
                samples.popleft()
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
