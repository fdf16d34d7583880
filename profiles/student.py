"""The error of a mean, and how likely chance alone gives a difference: Student's t, without scipy.

In: numbers; t and degrees of freedom. Out: an error; a probability. Knows nothing about what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def standard_error(values: Sequence[float] | npt.NDArray[np.floating]) -> float | None:
    """The standard error of the mean of values; None for fewer than two."""
    if len(values) < 2:
        return None
    with np.errstate(over="ignore"):  # figures of a file that nobody measured
        return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def two_sided_p(t: float, freedom: int) -> float:
    """The probability of a value at least as far from 0 as t, for a whole number of degrees of freedom, 1 or more.

    The sum is that of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    if math.isnan(t):
        return math.nan
    angle = math.atan2(abs(t), math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for k in range(odd, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(max(1.0 - within, 0.0), 1.0)
