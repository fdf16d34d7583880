"""Text in lines, out of words, blanks and ends of blocks, as a browser lays them out.

In: pieces of text, and where lines and blocks end. Out: the text: blanks are one space and not at either end of a line,
and there is at most one empty line in a row. Knows no markup.
"""

from __future__ import annotations

import re

_BLANKS = re.compile(r"[ \t\n\r\f\u00a0]+")


class LineWriter:
    """Text in lines. Blanks are one space, and there is none at either end of a line."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._space = False  # one that is written before the next word
        self._due = 0  # line ends that come before the next word
        self._prefix = ""  # of the next line
        self.one_line = False  # in a cell of a table

    def inline(self, text: str) -> None:
        words = _BLANKS.sub(" ", text)
        if words in ("", " "):
            self._space |= bool(words)
            return
        self._space |= words[0] == " "
        self._start()
        self._out.append(words.strip(" "))
        self._space = words[-1] == " "

    def verbatim(self, text: str) -> None:
        """Text with its own lines and blanks, as in <pre>."""
        if self.one_line:
            self.inline(text)
            return
        body = text.lstrip("\n") if self._due or not self._out else text
        self._due = min(self._due + (len(text) - len(body)) * bool(self._out), 2)
        if lines := body.rstrip("\n"):
            self._start()
            self._out.append(lines)
        self._due = min(self._due + len(body) - len(lines), 2)

    def end_line(self, breaks: int = 1) -> None:
        if self.one_line:
            self._space = True
        else:
            self._due, self._space = max(self._due, breaks), False

    def prefix(self, text: str) -> None:
        if not self.one_line:
            self._prefix = text

    def drop_prefix(self) -> None:
        """Without anything after it, the mark of a heading or an item is not written."""
        if not self.one_line:
            self._prefix = ""

    def _start(self) -> None:
        if self._due and self._out:
            self._out.append("\n" * self._due)
        elif self._space and self._out:
            self._out.append(" ")
        if self._prefix:
            self._out.append(self._prefix)
        self._due, self._space, self._prefix = 0, False, ""

    def text(self) -> str:
        return "".join(self._out)
