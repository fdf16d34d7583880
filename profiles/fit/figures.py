"""A predicted figure: its value, how far off it may be, and where that is known from.

In: numbers. Out: a `Figure`, and its words. Knows nothing about models or devices.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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


def fitted_terms(rows: Sequence[Sequence[float]], wanted: Sequence[float]) -> tuple[float, ...]:
    """The factors, none below 0, with which the terms of each row sum to what is wanted of it, as nearly as can be.

    Nearness is relative and in the least-squares sense. wanted: above 0. There are few terms, so that every choice of
    those that are not 0 is tried.
    """
    terms = np.asarray(rows, np.float64) / np.asarray(wanted, np.float64)[:, None]
    scale = np.maximum(np.abs(terms).max(axis=0), 1e-300)  # bytes and blocks differ by nine orders of magnitude
    count = terms.shape[1]
    best: tuple[float, ...] = (0.0,) * count
    least = math.inf
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            part = (terms / scale)[:, chosen]
            factors = np.linalg.lstsq(part, np.ones(len(part)), rcond=None)[0]
            error = float(np.square(part @ factors - 1).sum())
            if (factors >= 0).all() and error < least * (1 - 1e-9):
                least = error
                found = dict(zip(chosen, (factors / scale[list(chosen)]).tolist(), strict=True))
                best = tuple(found.get(term, 0.0) for term in range(count))
    return best
