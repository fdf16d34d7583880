"""Tables in documents are those of the figures that are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.profiles.record import read_profile
from edge.profiles.report import markdown_table
from tests.conftest import ROOT

RESULTS = sorted((ROOT / "profiles" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_readme_shows_them(path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, rest = readme.partition(f"<!-- profiles/results/{path.name} -->\n")
    table, end, _ = rest.partition("<!-- end -->")
    assert end, f"README.md has no place for {path.name}"
    assert table.splitlines() == markdown_table(read_profile(path))


def test_there_are_some() -> None:
    assert RESULTS
