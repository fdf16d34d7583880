"""The exact choice within a budget, against trying everything."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.export.budget.knapsack import UNITS, Choice, Option, choose

# Sixteenths: sums are exact in floating point, so that equal means equal.
numbers = st.integers(0, 200).map(lambda n: n / 16)
options = st.lists(st.builds(Option, numbers, numbers), min_size=1, max_size=4)
problems = st.lists(options, min_size=1, max_size=6)


def brute_force(items: list[list[Option]], limit: float) -> tuple[float, float] | None:
    """Least value, and the least weight that has it."""
    sums = (
        (sum(o.value for o in chosen), sum(o.weight for o in chosen))
        for chosen in itertools.product(*items)
        if sum(o.weight for o in chosen) <= limit
    )
    return min(sums, default=None)


def check(items: list[list[Option]], choice: Choice) -> None:
    chosen = [of_item[i] for of_item, i in zip(items, choice.indices, strict=True)]
    assert sum(o.weight for o in chosen) == choice.weight
    assert sum(o.value for o in chosen) == choice.value


@given(problems, st.integers(0, 1000).map(lambda n: n / 16))
@settings(max_examples=150, deadline=None)
def test_nothing_better_fits(items: list[list[Option]], limit: float) -> None:
    choice, best = choose(items, limit), brute_force(items, limit)
    if best is None:
        assert choice is None
        return
    assert choice is not None
    check(items, choice)
    assert (choice.value, choice.weight, choice.unit) == (*best, 0.0)


@given(problems, st.integers(1, 1000).map(lambda n: n / 16))
@settings(max_examples=60, deadline=None)
def test_in_units(items: list[list[Option]], limit: float) -> None:
    """With too many partial choices: it fits, and is as good as the best of what fits when rounded up."""
    choice = choose(items, limit, most_states=0)
    if choice is None:
        assert brute_force(items, limit) is None
        return
    check(items, choice)
    assert choice.weight <= limit
    unit = limit / UNITS
    assert choice.unit == unit
    rounded = [[Option(float(np.ceil(o.weight / unit)), o.value) for o in of_item] for of_item in items]
    best = brute_force(rounded, UNITS)
    assert best is None or choice.value <= best[0]


def of_9b(seed: int) -> list[list[Option]]:
    """GLM-4-9B's matrices, with costs that fall by 4 a bit or so."""
    rng = np.random.default_rng(seed)
    shapes = [(4608, 4096), (4096, 4096), (27392, 4096), (4096, 13696)] * 40 + [(151552, 4096)] * 2
    bits = [4 + 20 / 4096, 4 + 20 / 128, 4 + 20 / 64, 4 + 20 / 32, 8 + 24 / 4096]
    errors = np.array([0.03, 0.013, 0.011, 0.008, 0.00006])
    items = []
    for n, k in shapes:
        costs = errors * rng.lognormal(0, 0.1, 5) * rng.lognormal(0, 1.5)
        items.append([Option(n * k * b // 8, c) for b, c in zip(bits, costs, strict=True)])
    return items


@pytest.mark.parametrize("budget", [5.2e9, 6e9, 8e9])
def test_a_large_model_is_exact_in_time(budget: float) -> None:
    items, started = of_9b(0), time.perf_counter()
    choice = choose(items, budget)
    assert choice is not None
    assert choice.unit == 0.0
    assert choice.weight <= budget
    smallest = choose([[Option(o.value, o.weight) for o in of_item] for of_item in items], choice.value * (1 + 1e-9))
    assert smallest is not None
    assert smallest.weight <= choice.value * (1 + 1e-9)
    assert smallest.value == choice.weight  # the dual finds the same point
    assert time.perf_counter() - started < 60  # takes under a second; a choice that grows with 5^160 never ends
