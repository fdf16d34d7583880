"""What a page shows to be typed: its blocks of commands and of Python, and the commands in its sentences.

In: Markdown with fenced blocks whose language says what they are: `sh` is run, `python` is run, anything else is read.
Out: plain records. Knows nothing about which pages there are, or how a block is run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHELL, PYTHON, OUTPUT = "sh", "python", "text"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_COMMAND = re.compile(r"\s*[$>]?\s*(edge|pip|make|python3?|git|cd|docker|curl|\.) \S")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block."""

    language: str
    text: str
    line: int  # of its first line in the page, from 1

    @property
    def commands(self) -> list[str]:
        """Of a block of shell: a line each, those that end with a backslash together with what follows, no comments."""
        lines = re.sub(r"\\\n", "\\\0", self.text).splitlines()
        return [line.replace("\0", "\n") for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks(markdown: str) -> list[Block]:
    """Every fenced block, in the order of the page."""
    return [
        Block(found[1], found[2], markdown.count("\n", 0, found.start()) + 2) for found in _FENCE.finditer(markdown)
    ]


def program(markdown: str) -> str:
    """The Python of a page as one program: later blocks use names of earlier ones."""
    return "\n".join(block.text for block in blocks(markdown) if block.language == PYTHON)


def hidden_commands(markdown: str) -> list[str]:
    """Lines that look like commands and are in no block that is run: indented ones, and those of other languages."""
    rest = _FENCE.sub(lambda found: "" if found[1] in (SHELL, PYTHON) else found[0].replace("\n", "\n    "), markdown)
    return [line.strip() for line in rest.splitlines() if line.startswith("    ") and _COMMAND.match(line)]


def spans(markdown: str, first: str) -> list[str]:
    """Inline code that begins with a word and has more, each as one line."""
    found = (" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub("", markdown)))
    return [span for span in found if span.startswith(f"{first} ")]


def edge_calls(command: str) -> Iterator[list[str]]:
    """Arguments of each call of `edge` in a line of shell, which may be a pipeline."""
    calls: list[list[str]] = [[]]
    for word in shlex.split(command.replace("\\\n", " "), comments=True):
        if word in ("|", "&&", ";"):
            calls.append([])
        else:
            calls[-1].append(word)
    for call in calls:
        if call[:1] == ["edge"]:
            yield call[1:]
