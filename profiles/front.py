"""Which rows are on a Pareto front, as far as the errors of their figures let one say.

In: rows with errors. Out: indices of those on the front. Knows nothing about plots and pages.

A row is clearly better than another in a figure if it is better by more than the error of their difference: for the KLD
what chance gives once in 370 times if they do not differ (three standard errors; more where windows are few), paired
over windows where both were measured on the same ones; for a speed the two spreads
together, so that every repeat of the one is faster than every repeat of the other. Bytes have no error. What has no
known error is taken as it is. A row beats another if it is clearly better in one figure and in no figure clearly worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from edge.profiles.record import Row
from edge.profiles.student import standard_error, two_sided_p

CLEAR = 0.0027  # probability of chance: 0.05 would be too much where each row is held against every other
CLEAR_ERRORS = 3.0  # standard errors that have this probability

Better = Callable[[int, int], bool]  # whether one row is clearly better than another in a figure


def pareto_front(count: int, *figures: Better) -> list[int]:
    """Indices, of `count` rows, of those that no other beats.

    Errors of very different size can make rows beat each other in a circle. Those in one count as equal: a row is off
    the front only if a row beats it that it does not beat in turn, itself or by way of others. So the front of some
    rows is never empty, and does not depend on their order.
    """
    beats = np.zeros((count, count), dtype=bool)
    for a in range(count):
        for b in range(count):
            beats[a, b] = any(better(a, b) for better in figures) and not any(better(b, a) for better in figures)
    for via in range(count):  # now also by way of others
        beats |= beats[:, via, None] & beats[None, via, :]
    return [b for b in range(count) if not any(beats[a, b] and not beats[b, a] for a in range(count))]


def size_front(rows: Sequence[Row]) -> list[int]:
    """Indices of the rows that are not beaten in KLD and bytes."""
    return pareto_front(
        len(rows),
        lambda a, b: clearly_more_accurate(rows[a], rows[b]),
        lambda a, b: rows[a].weight_bytes < rows[b].weight_bytes,
    )


def speed_front(rows: Sequence[Row]) -> list[int]:
    """Indices of the rows with a speed that are not beaten in KLD and speed."""
    timed = [i for i, row in enumerate(rows) if row.decode_tokens_per_second]
    front = pareto_front(
        len(timed),
        lambda a, b: clearly_more_accurate(rows[timed[a]], rows[timed[b]]),
        lambda a, b: clearly_faster(rows[timed[a]], rows[timed[b]]),
    )
    return [timed[i] for i in front]


def clearly_more_accurate(a: Row, b: Row) -> bool:
    """Whether the KLD of a is lower than that of b by more than the error of the difference."""
    ours, theirs = a.accuracy, b.accuracy
    if not theirs.kld > ours.kld:
        return False
    if ours.reference_key == theirs.reference_key and len(ours.per_window_kld) == len(theirs.per_window_kld) > 1:
        differences = np.array(theirs.per_window_kld) - np.array(ours.per_window_kld)
        error = standard_error(differences)
        t = float(differences.mean()) / error if error else math.inf
        return t > 0 and two_sided_p(t, differences.size - 1) < CLEAR
    return theirs.kld - ours.kld > CLEAR_ERRORS * math.hypot(ours.kld_stderr or 0.0, theirs.kld_stderr or 0.0)


def clearly_faster(a: Row, b: Row) -> bool:
    """Whether a decodes faster than b by more than both spreads."""
    fast, slow = a.decode_tokens_per_second or 0.0, b.decode_tokens_per_second or 0.0
    return fast - slow > (a.decode_spread or 0.0) + (b.decode_spread or 0.0)
