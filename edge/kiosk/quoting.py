"""Words in the files of other programs: a unit of systemd, a command of a shell.

In: a text. Out: how that program's file says it, so that the program reads the very same text. Knows nothing about what
the words mean.

In a command of a unit (systemd.service(5), systemd.syntax(7)), quotes and backslashes are escaped in double quotes, and
"%" begins a specifier unless it is doubled. "$" is left alone: a command that begins with ":" has no variables.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

_ESCAPED = {"\\": "\\\\", '"': '\\"', "%": "%%", "\n": "\\n", "\t": "\\t"}
# systemd refuses the name of a program that has one of these, however it is written.
_NOT_IN_PROGRAMS = frozenset("\"'\\")
_ENV = "/usr/bin/env"  # runs what is named by an argument, which may have any characters


def unit_word(text: str) -> str:
    """Return a word of a command in a unit."""
    return f'"{"".join(map(_escaped, text))}"'


def unit_command(words: Sequence[str]) -> str:
    """Return the value of ExecStart= for a program, by its absolute path, and its arguments."""
    program = words[0]
    if _NOT_IN_PROGRAMS & set(program) or not program.isprintable():
        words = (_ENV, *words)
    return ":" + " ".join(map(unit_word, words))


def unit_text(text: str) -> str:
    """Return a text as the value of a setting that has no quotes, like Description=."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.replace("%", "%%").replace("\\", "\\\\").split())


def shell_command(words: Iterable[str]) -> str:
    """Return a command for any POSIX shell."""
    return shlex.join(words)


def _escaped(character: str) -> str:
    if character in _ESCAPED:
        return _ESCAPED[character]
    if character < " " or character == "\x7f" or _is_none(ord(character)):
        return "".join(f"\\x{byte:02x}" for byte in character.encode())
    return character


def _is_none(code: int) -> bool:
    """Whether a number is set aside by Unicode as no character; systemd takes a line that has one for damaged."""
    return code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
