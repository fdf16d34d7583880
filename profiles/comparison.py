"""Two measurements on the same text, paired: which is better, and whether that is more than chance.

In: what a user names: a profile, one of its rows, or the file of one cell. Out: pairs of rows with their differences.
Knows nothing about printing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.profiles.accuracy import Comparison, Difference, compare
from edge.profiles.record import Profile, Row, read_profile, read_record
from edge.runtime.errors import CalibrationError, ProfileError, in_words, shown
from edge.runtime.files import shown_path

SIGNIFICANT = 0.05  # a difference with p below this is taken for more than chance


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows, and by how much b exceeds a."""

    a: Row
    b: Row
    difference: Comparison


def compare_named(a: str, b: str) -> list[Pair]:
    """Compare what two texts name: FILE, or FILE:RECIPE/ENGINE[/SETTING].

    FILE is a profile.json, the folder that holds it, or a file in its cells/. If each names one row, these two are
    compared; otherwise rows of the same name. Raises ProfileError, also where nothing can be paired.
    """
    ours, theirs = named_rows(a), named_rows(b)
    if len(ours) == len(theirs) == 1:
        pairs = [(ours[0], theirs[0])]
    else:
        by_name = {row.name: row for row in theirs}
        pairs = [(row, by_name[row.name]) for row in ours if row.name in by_name]
    if not pairs:
        raise ProfileError(
            f"{a} ({_names(ours)}) and {b} ({_names(theirs)}) have no row of the same name; choose one of each, like "
            f"{a}:{ours[0].name}"
        )
    try:
        return [Pair(x, y, compare(x.accuracy, y.accuracy)) for x, y in pairs]
    except CalibrationError as error:
        raise ProfileError(f"{a} and {b}: {error}") from error


def named_rows(text: str) -> list[Row]:
    """The rows that FILE or FILE:NAME names. Raises ProfileError."""
    path, name = Path(text), ""
    if not os.path.lexists(path) and ":" in text:
        before, _, name = text.rpartition(":")
        path = Path(before)
    rows = _read_rows(path)
    if not rows:
        raise ProfileError(f"{shown_path(path)} holds no rows; run `edge profile run` again")
    if not name:
        return rows
    chosen = [row for row in rows if row.name == name]
    if not chosen:
        raise ProfileError(f"{shown_path(path)} has no row {shown(name)}; choose one of {_names(rows)}")
    return chosen


def better(difference: Difference) -> str:
    """Which of the two has the smaller figure, "a" or "b"; "" where chance explains the difference."""
    if difference.p >= SIGNIFICANT:
        return ""
    return "b" if difference.mean < 0 else "a"


def _read_rows(path: Path) -> list[Row]:
    if path.is_dir():
        return list(read_profile(path).rows)
    data = read_record(path)
    try:
        if isinstance(data, dict) and "row" in data:
            return [Row.from_json(data["row"])]
        return list(Profile.from_data(data).rows)
    except ProfileError as error:
        raise ProfileError(f"{shown_path(path)}: {error}") from error


def _names(rows: Sequence[Row]) -> str:
    return in_words(", ".join(row.name for row in rows))
