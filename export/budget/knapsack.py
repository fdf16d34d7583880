"""The best choice within a budget: one option for every item, weights within a limit, least value. Exactly.

In: the options of every item, each with a weight (which the limit bounds) and a value (to be made small). Out: an
option for every item. Knows nothing about models; bytes and KLD can take either part.

This is the multiple-choice knapsack (Kellerer, Pferschy, Pisinger, Knapsack Problems, 2004, chapter 11). Items are
added one after another to a list of partial choices. A partial choice is dropped if another one is neither heavier nor
worse, or if even a bound on what it can become is not better than a known whole choice. The bound is Lagrange's: with a
price on weight every item is on its own, and their total cost is a lower bound at any price; at the best price it
differs from the known choice by one item or so, and few partial choices are left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

BISECTIONS = 100  # of the price
MOST_STATES = 1 << 18  # partial choices at a time, before weights are taken in units
UNITS = 1 << 14  # of the limit, then
ROUNDING = 1e-12  # relative, of sums of values: bounds are given this much


@dataclass(frozen=True, slots=True)
class Option:
    """One of the things an item can be."""

    weight: float
    value: float


@dataclass(frozen=True, slots=True)
class Choice:
    """An option for every item."""

    indices: tuple[int, ...]  # of the options
    weight: float
    value: float
    unit: float  # 0: no other choice has a lower value. Else that holds for weights rounded up to multiples of this


def choose(items: Sequence[Sequence[Option]], limit: float, most_states: int = MOST_STATES) -> Choice | None:
    """The choice of least value whose weights sum to at most `limit`; None if there is none.

    Among choices with the same value a light one is taken. If more than `most_states` partial choices stay open,
    weights are rounded up to units of `limit` / UNITS, which bounds their number; `Choice.unit` says so.
    """
    if not math.isfinite(limit) or sum(min(o.weight for o in options) for options in items) > limit:
        return None
    weights = [np.array([o.weight for o in options], np.float64) for options in items]
    values = [np.array([o.value for o in options], np.float64) for options in items]
    known = _priced(weights, values, limit)
    unit, found = 0.0, _search(weights, values, limit, known, most_states)
    if found is None:
        unit = limit / UNITS
        rounded = [np.ceil(w / unit) for w in weights]
        found = _search(rounded, values, UNITS, known, None)
        assert found is not None
    if _total(values, found) > _total(values, known):  # rounding up may have excluded what is known
        found = known
    return Choice(tuple(found), _total(weights, found), _total(values, found), unit)


def _total(numbers: Sequence[Float64Array], indices: Sequence[int]) -> float:
    return math.fsum(float(of_item[i]) for of_item, i in zip(numbers, indices, strict=True))


def _priced(weights: Sequence[Float64Array], values: Sequence[Float64Array], limit: float) -> list[int]:
    """A choice that fits: the best option of every item at the lowest price at which they fit."""
    best = [int(np.lexsort((v, w))[0]) for w, v in zip(weights, values, strict=True)]  # an infinite price
    for price in _prices(weights, values, limit):
        chosen = [_at_price(w, v, price) for w, v in zip(weights, values, strict=True)]
        if _total(weights, chosen) <= limit and _total(values, chosen) < _total(values, best):
            best = chosen
    return best


def _prices(weights: Sequence[Float64Array], values: Sequence[Float64Array], limit: float) -> list[float]:
    """Prices of a unit of weight, from 0 towards the price at which the limit is met, which is the last."""
    prices = [0.0]
    steepest = 0.0
    for w, v in zip(weights, values, strict=True):
        steps = np.diff(np.unique(w))
        if steps.size:
            steepest = max(steepest, float((v.max() - v.min()) / steps.min()))
    low, high = 0.0, 2 * steepest
    if _total(weights, [_at_price(w, v, 0.0) for w, v in zip(weights, values, strict=True)]) <= limit:
        return prices
    for _ in range(BISECTIONS):
        price = (low + high) / 2
        prices.append(price)
        if _total(weights, [_at_price(w, v, price) for w, v in zip(weights, values, strict=True)]) <= limit:
            high = price
        else:
            low = price
    return [*prices, high]


def _at_price(weights: Float64Array, values: Float64Array, price: float) -> int:
    return int(np.lexsort((weights, values + price * weights))[0])


def _search(
    weights: Sequence[Float64Array],
    values: Sequence[Float64Array],
    limit: float,
    known: Sequence[int],
    most_states: int | None,
) -> list[int] | None:
    """The best choice; None if more than `most_states` partial choices stay open.

    `known` is a choice whose value bounds the best one; it need not fit.
    """
    price = _prices(weights, values, limit)[-1]
    bound = _total(values, known)
    reduced = [v + price * w for w, v in zip(weights, values, strict=True)]
    rest = np.cumsum([0.0, *(float(r.min()) for r in reduced[::-1])])[::-1]  # of items i and on, at this price
    lightest = np.cumsum([0.0, *(float(w.min()) for w in weights[::-1])])[::-1]
    slack = ROUNDING * (abs(bound) + price * limit + sum(float(np.abs(v).max()) for v in values))
    weight, value = np.zeros(1), np.zeros(1)
    trail: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]] = []  # of each partial choice: before, option
    for i, (w, v) in enumerate(zip(weights, values, strict=True)):
        parents, options = np.divmod(np.arange(weight.size * w.size), w.size)
        weight, value = weight[parents] + w[options], value[parents] + v[options]
        lower = value + rest[i + 1] - price * (limit - weight)
        keep = np.flatnonzero((weight + lightest[i + 1] <= limit + ROUNDING * limit) & (lower <= bound + slack))
        keep = keep[np.lexsort((value[keep], weight[keep]))]
        if keep.size:  # of those sorted by weight, the ones with less value than all before
            before = np.minimum.accumulate(value[keep])
            keep = keep[np.concatenate([[True], value[keep][1:] < before[:-1]])]
        if most_states is not None and keep.size > most_states:
            return None
        weight, value = weight[keep], value[keep]
        trail.append((parents[keep], options[keep]))
    fits = np.flatnonzero(weight <= limit)
    state = int(fits[-1]) if fits.size else -1  # the heaviest has the least value
    if state < 0:
        return list(known)
    found = []
    for before, option in reversed(trail):
        found.append(int(option[state]))
        state = int(before[state])
    return found[::-1]
