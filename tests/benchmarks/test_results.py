"""The table in docs/recipes.md is the one that profiles/results gives."""

from __future__ import annotations

from results import PAGE, RESULTS, with_table

from edge.profiles.record import read_profile
from edge.profiles.settings import DEFAULT_RECIPES
from edge.runtime.engines.registry import ENGINES


def test_the_table_is_that_of_the_results() -> None:
    profile = read_profile(RESULTS)
    engines = [name for name, record in ENGINES.items() if record.runs_on("CPU")]
    assert [(row.recipe, row.engine) for row in profile.rows] == [(r, e) for r in DEFAULT_RECIPES for e in engines]
    assert not profile.failures
    assert profile.num_windows * profile.window_tokens >= 20_000
    text = PAGE.read_text(encoding="utf-8")
    assert with_table(text, profile) == text
    assert with_table(text.replace("| int8-asym |", "| int9 |"), profile) == text
