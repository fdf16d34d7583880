"""How far a picture's way through the tower is.

In: layers and seconds. Out: what a caller is told between two parts of the tower, and every second while one runs.
Knows nothing about graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PictureProgress:
    """What is done of one picture. The first and the last news of each have `done` 0 and `total`."""

    done: int  # layers
    total: int
    seconds_left: float | None  # from what ran so far; None: nothing has
    kept: bool = False  # its rows were there already, and nothing runs


OnPicture = Callable[[PictureProgress], None]  # what it raises ends the run


def layers_done(parts: int, of_parts: int, layers: int) -> int:
    """Return about how many layers a number of parts has: parts are of about the same size."""
    return layers * parts // of_parts


def seconds_left(elapsed: float, done: int, total: int) -> float | None:
    return elapsed / done * (total - done) if done else None
