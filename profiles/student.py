"""How likely chance alone gives a difference: Student's t, without a package that a laptop need not have.

In: t and degrees of freedom. Out: a probability. Knows nothing about what is compared.
"""

from __future__ import annotations

import math


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
