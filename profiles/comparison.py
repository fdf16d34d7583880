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


def so_far(text: str) -> str:
    """How much of a sweep FILE or FILE:NAME has, if that is not all. Raises ProfileError."""
    found = _read(_split(text)[0])
    return found.so_far if isinstance(found, Profile) else ""


def named_rows(text: str) -> list[Row]:
    """The rows that FILE or FILE:NAME names. Raises ProfileError."""
    path, name = _split(text)
    found = _read(path)
    rows = list(found.rows) if isinstance(found, Profile) else [found]
    if not rows:
        state = found.so_far if isinstance(found, Profile) else ""
        advice = f": {state}; wait for the first" if state else "; run `edge profile run` again"
        raise ProfileError(f"{shown_path(path)} holds no rows{advice}")
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


def _split(text: str) -> tuple[Path, str]:
    """FILE or FILE:NAME in its parts."""
    path, name = Path(text), ""
    if not os.path.lexists(path) and ":" in text:
        before, _, name = text.rpartition(":")
        path = Path(before)
    return path, name


def _read(path: Path) -> Profile | Row:
    if path.is_dir():
        return read_profile(path)
    data = read_record(path)
    try:
        return Row.from_json(data["row"]) if isinstance(data, dict) and "row" in data else Profile.from_data(data)
    except ProfileError as error:
        raise ProfileError(f"{shown_path(path)}: {error}") from error


def _names(rows: Sequence[Row]) -> str:
    return in_words(", ".join(row.name for row in rows))
