"""Tables on stdout: on a terminal as wide as it is, anywhere else whole.

In: titles and rows of a table, and what may be done without. Out: lines on stdout. A file or a pipe gets every column,
aligned by blanks. A terminal gets what fits: titles and prose are wrapped, then columns that can be spared are left
out, which a line below the table says. Nothing is coloured. Knows nothing about what a table is of.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from edge.runtime.terminal_text import on_one_line

MOST_LINES = 3  # of a row
FEW = 12  # columns of the terminal that a kind of texts keeps while others are wider
GAP = 2  # columns of the terminal between two of the table
USUAL_SIZE = (100, 24)  # of a terminal that does not tell
ELSEWHERE = "`| cat` shows all"
# Figures go to the right: with an error or a unit, and what was not measured.
_FIGURE = re.compile(r"[+-]?[\d.,]+( ± [\d.,?]+)?( of \d+)?( ?(%|[kMG]?B|ms|s))?|-|")

# Where a line may end: after a blank, a hyphen, a slash, and a dot that is not within a figure.
_BREAKS = re.compile(r"(?<=[\s/_-])(?=\S)|(?<=\.)(?=[^\W\d])")


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    cells: tuple[str, ...]
    prose: bool

    @property
    def figures(self) -> bool:
        return bool(self.cells) and all(_FIGURE.fullmatch(cell) for cell in self.cells)

    @property
    def natural(self) -> int:
        """The width that wraps nothing."""
        return max(map(cell_width, (self.title, *self.cells)))

    def narrowest(self) -> int:
        """The width that breaks no word and no figure, with titles and prose on a few lines."""
        wrapped = (self.title, *self.cells) if self.prose else (self.title,)
        unbroken = [word for text in wrapped for word in text.split()] + list(() if self.prose else self.cells)
        width = max(max(map(cell_width, unbroken), default=0), max(map(cell_width, wrapped)) // MOST_LINES, 1)
        while any(len(_wrapped(text, width)) > MOST_LINES for text in wrapped):
            width += 1
        return width


def print_table(
    columns: Sequence[str],
    rows: Iterable[Iterable[object]],
    *,
    spare: Sequence[str] = (),
    prose: Collection[str] = (),
    elsewhere: str = ELSEWHERE,
) -> None:
    """Print a table; figures are aligned to the right.

    spare: titles of columns that a narrow terminal can do without, the least important first. prose: titles of columns
    whose cells may be wrapped. elsewhere: where a reader finds what was left out.
    """
    table = [[on_one_line(str(cell)) for cell in row] for row in rows]
    found = [_Column(title, tuple(row[i] for row in table), title in prose) for i, title in enumerate(columns)]
    if not sys.stdout.isatty():
        return _print_whole(found)
    width = shutil.get_terminal_size(USUAL_SIZE).columns or USUAL_SIZE[0]
    if _total(column.natural for column in found) <= width:
        return _print_whole(found)
    try:
        import rich  # noqa: F401  # a slim install has none, and wraps nothing
    except ModuleNotFoundError:
        return _print_whole(found)
    narrowest, left_out = {column.title: column.narrowest() for column in found}, []
    for title in spare:
        if _total(narrowest.values()) <= width:
            break
        if title not in narrowest:
            continue
        left_out.append(title)
        del narrowest[title]
    found = [column for column in found if column.title in narrowest]
    cut = _print_narrow(found, list(narrowest.values()), width)
    if left_out or cut:
        what = [f"left out: {'; '.join(left_out)}"] * bool(left_out) + ["some texts are cut"] * cut
        print_text(f"({', '.join(what)}; {elsewhere})")
    return None


def print_text(text: str) -> None:
    """Print a paragraph; a terminal gets it in lines that break no word."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size(USUAL_SIZE).columns or USUAL_SIZE[0]
        text = "\n".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))
    print(text)


def cell_width(text: str) -> int:
    """How many columns of a terminal a text takes: two for each wide character."""
    if text.isascii():
        return len(text)
    try:
        from rich.cells import cell_len
    except ModuleNotFoundError:
        return sum(
            0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text
        )
    return cell_len(text)


def _print_whole(columns: Sequence[_Column]) -> None:
    widths = [column.natural for column in columns]
    for texts in zip(*((column.title, *column.cells) for column in columns), strict=True):
        cells = (
            " " * (width - cell_width(text)) + text if column.figures else text + " " * (width - cell_width(text))
            for column, text, width in zip(columns, texts, widths, strict=True)
        )
        print((" " * GAP).join(cells).rstrip())


def _print_narrow(columns: Sequence[_Column], narrowest: Sequence[int], width: int) -> bool:
    """Print a table that has to be wrapped; returns whether a text was cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    widths = _fitted(columns, narrowest, width)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), collapse_padding=True, show_edge=False)
    cut = False

    def text(of: str, wide: int) -> Text:
        nonlocal cut
        lines = _wrapped(of, wide)
        if len(lines) > MOST_LINES:
            cut = True
            lines = [*lines[: MOST_LINES - 1], _shortened(lines[MOST_LINES - 1], wide)]
        return Text("\n".join(lines))

    for column, wide in zip(columns, widths, strict=True):
        table.add_column(text(column.title, wide), width=wide, justify="right" if column.figures else "left")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(text(cell, wide) for cell, wide in zip(cells, widths, strict=True)))
    console = Console(width=width + GAP, color_system=None)
    with console.capture() as captured:
        console.print(table, highlight=False)
    for line in captured.get().splitlines():
        print(line.rstrip())
    return cut


def _fitted(columns: Sequence[_Column], narrowest: Sequence[int], width: int) -> list[int]:
    """Widths of columns, together at most `width`: too much is taken from prose, then from names, then from figures."""
    widths, natural = list(narrowest), [column.natural for column in columns]
    prose = [i for i, column in enumerate(columns) if column.prose]
    names = [i for i, column in enumerate(columns) if not column.figures]
    while _total(widths) > width and max(widths) > 1:
        kinds = (prose, names, range(len(widths)))
        wide = next((kind for kind in kinds if any(widths[i] > FEW for i in kind)), kinds[-1])
        widths[max(wide, key=lambda i: widths[i])] -= 1
    while _total(widths) < width and (short := [i for i, wide in enumerate(widths) if wide < natural[i]]):
        widths[max(short, key=lambda i: natural[i] - widths[i])] += 1
    return widths


def _total(widths: Iterable[int]) -> int:
    found = list(widths)
    return sum(found) + GAP * max(len(found) - 1, 0)


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of a text, broken after blanks, hyphens and the like; elsewhere only where a part alone is too long."""
    from rich.cells import chop_cells

    if cell_width(text) <= width:
        return [text]
    lines = [""]
    for part in _BREAKS.split(text):
        if cell_width(lines[-1] + part.rstrip()) <= width:
            lines[-1] += part
        elif cell_width(part) <= width:
            lines.append(part)
        else:
            lines += chop_cells(part, width)
    return [line.rstrip() for line in lines if line.strip()] or [""]


def _shortened(text: str, width: int) -> str:
    """A line with a sign at its end that more of the text follows."""
    from rich.cells import set_cell_size

    return set_cell_size(text, min(cell_width(text), width - 1)) + "…"
