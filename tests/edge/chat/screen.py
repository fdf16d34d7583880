"""A terminal of a few sequences, which loses what terminals can lose: moving the cursor ends a pending wrap."""

from __future__ import annotations

import re

from rich.cells import get_character_cell_size

_PIECE = re.compile(r"\x1b(?:\[([0-9;?]*)([A-Za-z])|([DM78]))|(.)", re.DOTALL)


class Screen:
    """What is seen, with all that has scrolled away above it."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.scrolled: list[list[str]] = []
        self.rows = [[" "] * width for _ in range(height)]
        self.row = self.column = 0  # a column equal to the width is a pending wrap
        self._saved = (0, 0)

    def write(self, text: str) -> None:
        for piece in _PIECE.finditer(text):
            argument, final, single, character = piece.groups()
            if character is not None:
                self._print(character)
            elif single is not None:
                self._settle()
                self._single(single)
            elif final != "m":
                self._settle()
                self._command(final, argument)

    def _settle(self) -> None:
        """A pending wrap is forgotten, and the next character replaces the last."""
        self.column = min(self.column, self.width - 1)

    def _print(self, character: str) -> None:
        if character == "\n":
            self.column = 0
            self._down()
        elif character == "\r":
            self.column = 0
        elif character == "\t":
            self.column = min(self.column // 8 * 8 + 8, self.width - 1)
        else:
            cells = get_character_cell_size(character)
            if self.column + cells > self.width:
                self.column = 0
                self._down()
            self.rows[self.row][self.column : self.column + cells] = [character, *[""] * (cells - 1)]
            self.column += cells

    def _down(self) -> None:
        if self.row == self.height - 1:
            self.scrolled.append(self.rows.pop(0))
            self.rows.append([" "] * self.width)
        else:
            self.row += 1

    def _single(self, name: str) -> None:
        if name == "D":
            self._down()
        elif name == "M":
            assert self.row > 0, "it would scroll back"
            self.row -= 1
        elif name == "7":
            self._saved = (self.row, self.column)
        else:
            self.row, self.column = self._saved

    def _command(self, name: str, argument: str) -> None:
        blank = [" "] * (self.width - self.column)
        if name == "B":
            self.row = min(self.row + int(argument or 1), self.height - 1)
        elif name == "K":
            self.rows[self.row][self.column :] = blank
        elif name == "J":
            self.rows[self.row][self.column :] = blank
            self.rows[self.row + 1 :] = [[" "] * self.width for _ in self.rows[self.row + 1 :]]
        else:
            raise AssertionError(name)

    def text(self) -> list[str]:
        """All rows, without space at their ends and without empty ones at the end."""
        rows = ["".join(row).rstrip() for row in (*self.scrolled, *self.rows)]
        while rows and not rows[-1]:
            rows.pop()
        return rows
