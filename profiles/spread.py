"""Repeats of one timing: their median, and how far apart they are.

In: samples. Out: numbers and text. The spread is the distance of the farthest repeat from the median, so that what
stands after ± holds for every repeat. One repeat has no spread (None), and neither have figures whose repeats were not
kept. Knows nothing about what was timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

REPEATS = 5  # of everything that is timed, after one cold run
SERVED_REPEATS = 3  # of a load by several clients, which takes much longer
NOISY = 0.1  # a spread above this share of the median says that something else was running
NAMED = 4  # figures that a warning names
MEANING = "median ± distance of the farthest repeat"


def median(samples: Sequence[float]) -> float:
    return float(statistics.median(samples))


def spread(samples: Sequence[float]) -> float | None:
    """The distance of the farthest sample from the median; None where there is one sample or none."""
    if len(samples) < 2:
        return None
    middle = median(samples)
    return max(abs(sample - middle) for sample in samples)


def with_spread(value: float, distance: float | None, digits: int) -> str:
    """`132.2 ± 0.6`, or the value alone where the spread is not known."""
    return f"{value:.{digits}f}" + ("" if distance is None else f" ± {distance:.{digits}f}")


def is_noisy(value: float, distance: float | None) -> bool:
    """Whether repeats are so far apart that the figure should not be relied on."""
    return distance is not None and distance > NOISY * abs(value)


def noise_warning(names: Sequence[str]) -> str:
    """One line about figures that are too noisy, of which there are some; a few of many are named."""
    named = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return (
        f"Repeats are more than {NOISY:.0%} of the median away from it ({named}): something else may have "
        "been running, so measure again on an idle machine."
    )
