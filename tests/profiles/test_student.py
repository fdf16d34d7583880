"""Student's t is that of scipy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import stdtr

from edge.profiles.student import two_sided_p


@given(st.floats(-50, 50), st.integers(1, 300))
def test_it_is_that_of_scipy(t: float, freedom: int) -> None:
    assert two_sided_p(t, freedom) == pytest.approx(2 * float(stdtr(freedom, -abs(t))), abs=1e-9)


def test_ends() -> None:
    for freedom in (1, 2, 3, 39):
        assert two_sided_p(0.0, freedom) == 1.0
        assert two_sided_p(math.inf, freedom) == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(two_sided_p(math.nan, 5))
