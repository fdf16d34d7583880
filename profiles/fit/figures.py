"""A predicted figure: its value, how far off it may be, and where that is known from.

In: numbers. Out: a `Figure`, and its words. Knows nothing about models or devices.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDE = 1.5  # beyond this factor, a share reads as more exact than it is


@dataclass(frozen=True, slots=True)
class Figure:
    """A value between value / factor and value * factor, as far as what is known has shown."""

    value: float
    factor: float  # 1.1: within 10 %; always 1 or more
    origin: str  # "leave-one-out over 8 measured pairs"
    about: bool = False  # whether too little is known for the factor to be trusted

    @property
    def low(self) -> float:
        return self.value / self.factor

    @property
    def high(self) -> float:
        return self.value * self.factor

    @property
    def error(self) -> str:
        """In words: a share up to a half, beyond that a factor."""
        share, factor = f"±{100 * (self.factor - 1):.0f} %", f"a factor of {self.factor:.1f}"
        words = share if self.factor <= WIDE else factor
        return f"about; {words}" if self.about else words

    def to_json(self) -> dict[str, object]:
        return {"value": self.value, "low": self.low, "high": self.high, "error": self.error, "origin": self.origin}


def factor_between(one: float, other: float) -> float:
    """How many times the larger is the smaller; both above 0."""
    return max(one, other) / min(one, other)


def left_out(values: Sequence[float]) -> float:
    """The worst factor between a value and the median of the others; 2 for a single one, of which nothing is known."""
    if len(values) < 2:
        return 2.0
    others = ([*values[:i], *values[i + 1 :]] for i in range(len(values)))
    return max(factor_between(value, statistics.median(rest)) for value, rest in zip(values, others, strict=True))


def two_terms(rows: Iterable[tuple[float, float, float]]) -> tuple[float, float]:
    """The a, b >= 0 for which a * x + b * y is nearest to t, relative to t, in the least-squares sense.

    rows: x, y, t above 0.
    """
    scaled = [(x / t, y / t) for x, y, t in rows]
    xx, xy, yy = (sum(p * q for p, q in pairs) for pairs in _products(scaled))
    sx, sy = sum(x for x, _ in scaled), sum(y for _, y in scaled)
    determinant = xx * yy - xy * xy
    a, b = 0.0, 0.0
    if determinant > 1e-12 * xx * yy:
        a, b = (sx * yy - sy * xy) / determinant, (sy * xx - sx * xy) / determinant
    if a <= 0 and b <= 0:
        a, b = (sx / xx if xx else 0.0), 0.0
    elif b < 0:
        a, b = sx / xx, 0.0
    elif a < 0:
        a, b = 0.0, sy / yy
    return a, b


def _products(scaled: list[tuple[float, float]]) -> tuple[list[tuple[float, float]], ...]:
    return [(x, x) for x, _ in scaled], scaled, [(y, y) for _, y in scaled]
