"""What somebody typed into the chat: a command, a message, or most likely a mistyped command.

In: the text of one message, as it was typed. Out: an `Order`, the message, or a CommandError. Knows nothing about what
a command does.

A line is a command if its first word is one and what follows is what that command takes: `/stats of my team` is a
message, and so is `/etc/hosts has which format?`. A lone word that looks like a command is refused rather than sent. A
space before the slash makes a message of anything, and so does a second line, except after /system and /edit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from edge.runtime.errors import PromptError, shown

BLOCK = '"""'  # opens and closes a message of several lines
_LONE_WORD = re.compile(r"/[a-z?]{1,20}")


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its name, what it takes, and what it does in a few words."""

    name: str
    does: str
    takes: str = ""  # the name of its argument, in brackets if it can be left out; or the words that it takes
    words: tuple[str, ...] = ()  # the only arguments there are
    is_path: bool = False
    several_lines: bool = False

    @property
    def usage(self) -> str:
        """The command as it is typed."""
        return f"{self.name} {self.takes}".rstrip()

    @property
    def needs_argument(self) -> bool:
        """Whether it can do nothing without one."""
        return bool(self.takes) and not self.takes.startswith("[")


COMMANDS = (
    Command("/file", "add a document to the next message", "PATH", is_path=True),
    Command("/image", "add a picture to the next message", "PATH", is_path=True),
    Command("/system", "show or set the system message", "[TEXT]", several_lines=True),
    Command("/tools", "list tools, or switch them", "[on|off|list]", words=("on", "off", "list")),
    Command("/retry", "answer the last message again"),
    Command("/edit", "replace the last message", "[TEXT]", several_lines=True),
    Command("/undo", "forget the last message"),
    Command("/reset", "forget the whole conversation"),
    Command("/save", "write the conversation to a file", "PATH", is_path=True),
    Command("/load", "continue a saved conversation", "PATH", is_path=True),
    Command("/stats", "figures of the last answer"),
    Command("/stop", "end an answer, as Ctrl-C does"),
    Command("/help", "this list"),
    Command("/exit", "leave, as Ctrl-D does"),
)
OTHER_NAMES = {"/?": "/help", "/bye": "/exit", "/quit": "/exit"}
_BY_NAME = {command.name: command for command in COMMANDS}
_OPENING = re.compile(rf"\s*((?:{'|'.join(c.name for c in COMMANDS if c.several_lines)})\s+)?{BLOCK}")
KEYS = (
    ("Enter", "send the message"),
    ("Alt-Enter", "begin a new line"),
    (BLOCK, "begin or end several lines"),
    ("Ctrl-C", "end an answer, or clear the line"),
    ("Ctrl-D", "leave"),
)
_INDENT = 11  # columns of a list before what a command does


class CommandError(PromptError):
    """A line that is a command, or looks like one, and cannot be carried out."""


@dataclass(frozen=True, slots=True)
class Order:
    """A command with its argument."""

    command: Command
    argument: str = ""


def understood(text: str) -> Order | str:
    """Return the command that a text is, or the message; "" for nothing but space. Raises CommandError."""
    if text[:1] != "/":
        return message_of(text)
    word, argument = _split(text)
    command = _BY_NAME.get(OTHER_NAMES.get(word, word))
    if command is None or ("\n" in text.strip() and not command.several_lines):
        if _LONE_WORD.fullmatch(text.strip()):
            raise CommandError(f"{word} is not a command{_hint(word)}; /help lists them; {_TO_SEND}")
        return message_of(text)
    argument = message_of(argument)
    if not argument:
        if command.needs_argument:
            raise CommandError(f"{command.name} needs more: {command.usage}")
        return Order(command)
    if not command.takes:
        return message_of(text)
    if command.words and argument not in command.words:
        raise CommandError(f"{command.name} {shown(argument)} is not a command; expected {command.usage}; {_TO_SEND}")
    return Order(command, argument)


_TO_SEND = "a space before it sends it as a message"


def message_of(text: str) -> str:
    """Return what is sent of a text: without the quotes of a block, and without empty lines around it.

    The indentation of the first of several lines stays, as code has some.
    """
    stripped = text.strip()
    if stripped.startswith(BLOCK) and len(stripped) >= 2 * len(BLOCK) and stripped.endswith(BLOCK):
        text = stripped[len(BLOCK) : -len(BLOCK)]
        stripped = text.strip()
    if "\n" not in stripped:
        return stripped
    return re.sub(r"\A(?:[^\S\n]*\n)+", "", text).rstrip()


def is_open(text: str) -> bool:
    """Whether a text begins a block that it does not end, so that more lines belong to it."""
    opening = _OPENING.match(text)
    return opening is not None and not text[opening.end() :].rstrip().endswith(BLOCK)


def help_lines() -> list[str]:
    """Return what /help prints: commands, then keys. The lines suit narrow terminals."""
    lines: list[str] = []
    for usage, does in (*((command.usage, command.does) for command in COMMANDS), *KEYS):
        if len(usage) < _INDENT:
            lines.append(f"{usage.ljust(_INDENT)}{does}")
        else:
            lines += [usage, f"{' ' * _INDENT}{does}"]
    return lines


def _split(text: str) -> tuple[str, str]:
    """Return the first word, and the rest without the space between the two."""
    found = re.match(r"(\S+)\s*", text)
    return (found[1], text[found.end() :]) if found else ("", "")


def _hint(word: str) -> str:
    close = get_close_matches(word, [*_BY_NAME, *OTHER_NAMES], 1, cutoff=0.6)
    return f", did you mean {close[0]}?" if close else ""
