"""Text on stdout as it is made, and one line below it on stderr that tells how it goes and leaves no trace.

In: pieces of text, and what the line says. Out: both on the terminal. Where stderr is not a terminal, there is no line;
where stdout is not, nothing but text goes there. Knows nothing about answers.

The line is drawn below the cursor, which then returns: DEC's index and reverse index make room without changing the
column. A cursor at the right edge is between two columns, and moving it would lose a character there, so the line waits
until it is elsewhere. Whether it is there is counted from the width of each character, which terminals do not agree on
for joined emoji; after one of those, the line waits for the next line of text.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from typing import TextIO

from edge.runtime.terminal_text import on_one_line, visible

EVERY_S = 0.1
_ROOM = "\x1bD\x1bM"  # a line below the cursor, whose column stays
_BELOW = "\x1b7\x1b[1B\r{}\x1b[K\x1b8"
_ERASE = "\x1b[J"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_TAB = 8
# Marks that combine with the character before them, joiners, variation selectors, flags and skin tones.
_UNSURE = re.compile("[\u0300-\u036f\u200b-\u200f\ufe00-\ufe0f\u20e3\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff]")


class StatusLine:
    """Writes text, and a line below it. Close it before anything else is written."""

    def __init__(self, unguarded: Callable[[TextIO], TextIO], clock: Callable[[], float] = time.monotonic) -> None:
        """unguarded: finds the stream on which escape sequences may be written."""
        movable = sys.platform != "win32" and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
        self._drawn = unguarded(sys.stderr) if movable and sys.stderr.isatty() else None
        self._text_is_seen = sys.stdout.isatty()
        self._clock, self._last = clock, -EVERY_S
        self._column, self._is_sure, self._is_shown = 0, True, False
        self._width, self._text = 0, ""

    @property
    def is_drawn(self) -> bool:
        """Whether stderr is a terminal that shows the line."""
        return self._drawn is not None

    def aside(self, text: str) -> None:
        """Write text to stderr, dim where that is a terminal."""
        if not text:
            return
        self.hide()
        if self._drawn is None:
            print(text, end="", file=sys.stderr, flush=True)
            return
        self._put(_dimmed(visible(text)))
        if self._text_is_seen:
            self._advance(visible(text))

    def write(self, text: str) -> None:
        """Write text to stdout."""
        if text:
            self.hide()
            print(text, end="", flush=True)
            if self._drawn is not None and self._text_is_seen:
                self._advance(visible(text))

    def show(self, text: str) -> None:
        """Show a text below; what was shown a moment ago stays a moment longer."""
        now = self._clock()
        changes = now - self._last >= EVERY_S
        if self._drawn is None or (self._is_shown and not changes):
            return
        self._width = _width(self._drawn)
        if not self._is_sure or self._column >= self._width - 1:
            return
        if changes:
            self._last, self._text = now, on_one_line(text)
        room = "" if self._is_shown else _ROOM
        self._put(room + _BELOW.format(_dimmed(self._text[: self._width - 1])))
        self._is_shown = True

    def hide(self) -> None:
        """Take the line away."""
        if self._is_shown:
            self._put(_ERASE)
            self._is_shown = False

    def _put(self, codes: str) -> None:
        if self._drawn is None:
            return
        try:
            self._drawn.write(codes)
            self._drawn.flush()
        except OSError:  # the terminal has gone; whoever writes text there will say so
            self._drawn = None

    def _advance(self, text: str) -> None:
        """Follow the cursor."""
        try:
            from rich.cells import get_character_cell_size
        except ImportError:  # a slim installation
            self._is_sure = False
            return
        width = self._width = self._width or _width(self._drawn)
        for character in text:
            if character == "\n":
                self._column, self._is_sure = 0, True
            elif character == "\t":
                self._column = min(self._column // _TAB * _TAB + _TAB, width - 1)
            elif _UNSURE.match(character):
                self._is_sure = False
            else:
                cells = get_character_cell_size(character)
                self._column = cells if self._column + cells > width else self._column + cells


def _dimmed(text: str) -> str:
    return text if "NO_COLOR" in os.environ else f"{_DIM}{text}{_PLAIN}"


def _width(stream: TextIO | None) -> int:
    """Columns of a terminal; 80 if it does not say."""
    try:
        assert stream is not None
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
