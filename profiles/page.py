"""A profile as one HTML page that stands alone: `profile.html`, made from the template beside this file.

In: a `Profile`, the plots as SVG elements, warnings for its top and facts for its end. Out: HTML: same profile, same
bytes. Columns that say the same of every row are told once above the table; each row is named by its recipe and by what
else tells it apart. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from edge.profiles.columns import ACCURACY, COLUMNS, COST, ENGINE, SETTING, Column, same_in_all, told_once
from edge.profiles.front import size_front, speed_front
from edge.profiles.record import DEFAULT_SETTING, Profile, Row

TEMPLATE = "page.html.j2"
MARKS = {"size": size_front, "speed": speed_front}


def to_html(
    profile: Profile, title: str, plots: Mapping[str, str], warnings: Sequence[str], facts: Sequence[str]
) -> str:
    """One page without external links; `plots` are SVG elements by what they show."""
    rows = profile.rows
    once = told_once(rows)
    found = {name: [c for c in COLUMNS if c.group == name and c not in once] for name in (ACCURACY, COST)}
    groups = {name: columns for name, columns in found.items() if columns}
    names = [column for column in (ENGINE, SETTING) if column not in once]
    marked = {mark: set(front(rows)) for mark, front in MARKS.items()}
    shown = [
        {
            "recipe": row.recipe,
            "sub": _sub(row, names),
            "marks": [mark for mark, indices in marked.items() if index in indices],
            "cells": [
                _cell(column, row, first=i == 0) for columns in groups.values() for i, column in enumerate(columns)
            ],
        }
        for index, row in enumerate(rows)
    ]
    # What a column that was told once would say is text like any other, so everything but the plots is escaped.
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined).from_string(
        files("edge.profiles").joinpath(TEMPLATE).read_text(encoding="utf-8")
    )
    return page.render(
        title=title,
        warnings=warnings,
        same=same_in_all(rows, once),
        name="recipe" if len(names) == 0 else "recipe, engine",
        groups=[{"title": name, "columns": columns} for name, columns in groups.items()],
        rows=shown,
        plots=[{"title": name, "svg": svg} for name, svg in plots.items()],
        facts=facts,
    )


def _sub(row: Row, names: Sequence[Column]) -> str:
    """What tells a row from others of its recipe."""
    return ", ".join(
        column.text(row) for column in names if column is not SETTING or column.text(row) != DEFAULT_SETTING
    )


def _cell(column: Column, row: Row, *, first: bool) -> dict[str, Any]:  # Any: what the template takes
    assert column.number is not None, "names of a row are in its first cell"
    value = column.number(row)
    return {"text": column.text(row), "value": "" if value is None else repr(value), "first": first}
