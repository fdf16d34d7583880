"""Where the chat's lines come from: a terminal with prompt_toolkit, one without, or a pipe.

In: how stdin and stdout are connected. Out: a `Reader`. Knows nothing about what the lines mean.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Protocol, TextIO

from edge.terminal.history import History
from edge.terminal.plain_reader import PipeReader, PlainReader

PROMPT, CONTINUED = "> ", ". "
_WITHOUT_CURSOR = ("", "dumb", "unknown")  # values of TERM: terminals whose cursor cannot be moved


class Reader(Protocol):
    """What reads one text after another."""

    is_terminal: bool
    edits: bool  # whether a text can be given to be edited

    def read(self, default: str = "") -> str:
        """Return the next text, of one line or more; default: what to begin with, if it `edits`.

        Raises EOFError after the last, PromptError for a text that is not UTF-8, and SettingsError for one that has no
        end.
        """

    def confirmed(self, question: str) -> bool:
        """Ask somebody for y or n; nobody at a pipe says yes."""

    def put(self, line: str | None) -> None:
        """Take a line that was typed before it was asked for: it is read next. None: the end, by Ctrl-D."""


def open_reader(
    history: Callable[[], History], status: Callable[[], str], unguarded: Callable[[TextIO], TextIO]
) -> Reader:
    """Return the best reader for what stdin is.

    history is opened for a terminal alone. status: the line below a prompt. unguarded: finds the stream to draw on.
    """
    if not sys.stdin.isatty():
        return PipeReader()
    if sys.platform == "win32" or os.environ.get("TERM", "") not in _WITHOUT_CURSOR:
        try:
            from edge.terminal.prompt_reader import PromptReader

            return PromptReader(history(), status, unguarded)
        except (ImportError, OSError):  # it is not installed, or this is not a terminal of Windows' own
            pass
    return PlainReader(history())
