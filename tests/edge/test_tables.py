"""Tables: whole in a pipe, and on a terminal no wider than it, whatever is in them."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge.commands.console import print_table
from edge.commands.tables import MOST_LINES, cell_width

TITLES = ["recipe", "engine", "bits per weight", "KLD", "tok/s", "what it is"]
ROWS = [
    ["int4-asym-g128-awq-data-free", "onnx", "4.25", "0.2203 ± 0.0041", "102.3 ± 0.4", "4 bits without any text"],
    ["模型 中文 int8", "openvino", "8.50", "-", "-", "8 bits in each row, and many more words than anybody needs " * 3],
]
SPARE = ["bits per weight", "what it is", "engine"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(rows: Sequence[Sequence[str]], width: int | None = None, **options: Sequence[str]) -> list[str]:
    """The lines that a table has on a terminal of this width, or in a pipe."""
    stream = io.StringIO() if width is None else Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setenv("COLUMNS", str(width))
        print_table(TITLES, rows, **options)  # type: ignore[arg-type]  # mypy takes any option for any parameter
    return stream.getvalue().splitlines()


def test_a_pipe_gets_everything_in_columns() -> None:
    lines = shown(ROWS, spare=SPARE, prose=["what it is"])
    assert len(lines) == 1 + len(ROWS)
    assert [re.split(r" {2,}", line.strip()) for line in lines[:2]] == [TITLES, ROWS[0]]
    assert ROWS[1][-1].strip() in lines[2]
    starts = {cell_width(line[: line.index(cell)]) for line, cell in zip(lines[1:], ("onnx", "openvino"), strict=True)}
    assert len(starts) == 1, "a wide character takes two columns"


@pytest.mark.parametrize("width", [45, 80, 100])
def test_a_terminal_gets_what_fits(width: int) -> None:
    lines = shown(ROWS, width, spare=SPARE, prose=["what it is"])
    assert max(map(cell_width, lines)) <= width
    text = "\n".join(lines)
    assert ("int4-asym-g128-awq-data-free" in text) == (width > 45)
    assert "102.3 ± 0.4" in text
    assert "(left out: bits per weight" in text
    assert "`| cat` shows all)" in text.replace("\n", " ")
    assert "\x1b" not in text


def test_a_wide_terminal_gets_everything() -> None:
    assert shown(ROWS[:1], 200, spare=SPARE) == shown(ROWS[:1])


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(st.lists(st.text(max_size=40), min_size=6, max_size=6), max_size=4),
    width=st.integers(30, 160),
)
@example(rows=[["a\nb\tc\x1b[2J", "1", "\ud800", "", "", "中文" * 20]], width=30)
def test_no_line_is_too_long_and_no_row_too_high(rows: list[list[str]], width: int) -> None:
    lines = shown(rows, width, prose=["what it is"])
    hint = [i for i, line in enumerate(lines) if line.startswith("(some texts are cut")]
    assert len(lines[: hint[0]] if hint else lines) <= MOST_LINES * (1 + len(rows))
    assert all(cell_width(line) <= width for line in lines)
    assert not any(control in line for line in lines for control in "\x1b\t\x00")
    assert len(shown(rows)) == 1 + len(rows)


def test_without_rich_columns_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shown(ROWS)
    for name in [name for name in sys.modules if name == "rich" or name.startswith("rich.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("rich", "rich.cells"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cell_width("中a") == 3
    assert shown(ROWS, 45, spare=SPARE) == shown(ROWS) == whole
