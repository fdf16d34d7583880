"""What Tab offers: names of commands, the words they take, and paths after those that take one.

In: a line up to the cursor. Out: texts that would replace its end. Knows nothing about how they are shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from edge.runtime.terminal_text import is_line
from edge.terminal.slash import COMMANDS

MOST = 500  # entries of a folder


def completed(before: str) -> tuple[str, list[str]]:
    """Return the end of a line that could be completed, and what could stand in its place."""
    if "\n" in before:
        return "", []
    found = re.fullmatch(r"(/[a-z]*)(\s+)?(.*)", before)
    if found is None:
        return "", []
    name, space, argument = found.groups()
    if not space:
        return name, [c.name + " " * bool(c.takes) for c in COMMANDS if c.name.startswith(name) and not argument]
    for command in COMMANDS:
        if command.name == name:
            if command.is_path:
                return argument, sorted(islice(_paths(argument), MOST))
            return argument, [word for word in command.words if word.startswith(argument)]
    return "", []


def _paths(begun: str) -> Iterator[str]:
    """Paths of files and folders that begin so; hidden ones if the name begins with a dot."""
    head, _, start = begun.rpartition("/")
    head += "/" * ("/" in begun)
    try:
        with os.scandir(Path(head).expanduser() if head else ".") as entries:
            for entry in entries:
                if entry.name.startswith(start) and (start or not entry.name.startswith(".")) and is_line(entry.name):
                    yield f"{head}{entry.name}{'/' if entry.is_dir() else ''}"
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a home that is not known
        return


def path_of(argument: str) -> str:
    """Return the path that somebody typed or dragged into the terminal: without quotes, and with the home for ~."""
    text = argument.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        return text
