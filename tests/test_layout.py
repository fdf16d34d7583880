"""Sizes that keep the code readable: a file is one idea, and the root of `export/` is a list one can take in."""

from __future__ import annotations

from pathlib import Path

import pytest

import edge

PACKAGE = Path(edge.__file__).parent
LONGEST = 350  # lines of a file of the package
AT_THE_ROOT = 18  # files of `export/` beside its wings
FILES = sorted(
    path
    for part in ("*.py", "[!erp]*/**/*.py", "export/**/*.py", "runtime/**/*.py", "profiles/**/*.py")
    for path in PACKAGE.glob(part)
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_is_one_idea(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST, f"{lines} lines; which second idea moved in?"


def test_the_root_of_export_can_be_taken_in() -> None:
    assert len(list((PACKAGE / "export").glob("*.py"))) <= AT_THE_ROOT


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_paths_of_users_may_be_loops_of_links(path: Path) -> None:
    assert ".resolve(" not in path.read_text(encoding="utf-8"), "it raises RuntimeError there; use files.real_path"
