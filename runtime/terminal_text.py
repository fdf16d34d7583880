"""Text from elsewhere, as a terminal can show it: nothing in it moves the cursor, changes colours or hides a line.

In: any text. Out: the text with those characters escaped. Knows nothing about where it is shown.
"""

from __future__ import annotations

import re

MAX_LINE = 10_000  # characters of a text that counts as one line

# Control characters except tab and line feed, which move a terminal's cursor or begin its escape sequences, and what
# changes the direction of writing.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"
_OBEYED = re.compile(f"[{_CONTROLS}]")
# The same with what ends a line or paragraph, tabs, and halves of surrogate pairs.
_NOT_ON_A_LINE = re.compile(f"[{_CONTROLS}\t\n\u2028\u2029\ud800-\udfff]")


def visible(text: str) -> str:
    """Return text, of one line or more, with what a terminal would obey escaped as in Python: `\\x1b` for an escape."""
    return text if text.isprintable() else _OBEYED.sub(_escaped, text)


def on_one_line(text: str) -> str:
    """Return text as a terminal shows it on one line: `visible`, with line ends, tabs and surrogates escaped, too."""
    return text if text.isprintable() else _NOT_ON_A_LINE.sub(_escaped, text)


def is_line(value: object) -> bool:
    """Whether a value is text that every terminal shows unchanged on one line."""
    return isinstance(value, str) and len(value) <= MAX_LINE and on_one_line(value) == value


def _escaped(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
