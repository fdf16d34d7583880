"""Lines from a pipe, and from a terminal by Python's own input().

In: stdin. Out: one text after another: a line, or the lines of a block. Knows no commands.
"""

from __future__ import annotations

import contextlib
import locale
import os
import sys
from collections import deque

from edge.runtime.errors import EdgeError, PromptError
from edge.runtime.unicode import check_typed, decode_text, marked_encoding, told_encoding
from edge.terminal.completing import completed
from edge.terminal.history import History
from edge.terminal.slash import BLOCK, is_open

MAX_LINE_BYTES = 10_000_000  # of a pipe, lest an endless line fills the memory
WHAT = "the line"
_ASCII = ("ANSI_X3.4-1968", "US-ASCII")  # as glibc and others name the encoding of the C locale


class PipeReader:
    """Reads what a file or another program gives."""

    is_terminal = edits = False

    def read(self, default: str = "") -> str:  # noqa: ARG002  # as readers have it
        """Return the next line or block."""
        text = self._line()
        while is_open(text):
            try:
                text += "\n" + self._line()
            except EOFError:
                raise PromptError(f"the input ended inside a block; end it with {BLOCK}") from None
        return text

    def _line(self) -> str:
        line = sys.stdin.buffer.readline(MAX_LINE_BYTES)
        if len(line) == MAX_LINE_BYTES:
            raise EdgeError(f"a line of {MAX_LINE_BYTES:,} bytes or more is not a message; send shorter ones")
        if not line:
            raise EOFError
        if (marked := marked_encoding(line)) and marked[1] != "utf-8":  # whose line ends are no bytes
            raise PromptError("standard input is UTF-16 or UTF-32; convert it to UTF-8")
        return decode_text(line, WHAT, otherwise=told_encoding()).rstrip("\r\n")

    def confirmed(self, question: str) -> bool:  # noqa: ARG002
        """There is nobody to ask."""
        return False

    def put(self, line: str | None) -> None:
        """Lines of a pipe wait there."""
        raise AssertionError(line)


class PlainReader:
    """Reads from a terminal, with the editing keys of readline where Python has it."""

    is_terminal = True

    def __init__(self, history: History) -> None:
        self._history = history
        self._waiting: deque[str | None] = deque()
        self._interrupted = False  # by Ctrl-C, with nothing typed since
        self._default = ""
        self.edits = _with_readline(self, history.lines)

    def read(self, default: str = "") -> str:
        """Return the next line or block. Ctrl-C clears it."""
        while True:
            self._default = default
            try:
                text = self._block()
            except KeyboardInterrupt:
                hint = " (Ctrl-D or /exit leaves)" if self._interrupted else ""
                print(hint, file=sys.stderr)
                self._interrupted = not hint
                continue
            self._interrupted = False
            if self._history.add(text):
                _remember(text)
            return text

    def _block(self) -> str:
        text = self._line("> ")
        while is_open(text):
            text += "\n" + self._line(". ")
        return text

    def _line(self, prompt: str) -> str:
        if self._waiting:
            return waiting_line(self._waiting)
        try:
            if sys.stdout.isatty():
                line = input(prompt)
            else:  # where input() would write its prompt
                print(prompt, end="", file=sys.stderr, flush=True)
                line = sys.stdin.readline()
                if not line:
                    raise EOFError
                line = line.rstrip("\n")
            return check_typed(line, WHAT)
        except UnicodeDecodeError as error:
            return decode_text(error.object, WHAT)

    def confirmed(self, question: str) -> bool:
        """Whether the answer begins with a y."""
        try:
            return self._line(f"{question} [y/N] ").strip().lower().startswith("y")
        except (KeyboardInterrupt, EOFError, PromptError):
            print(file=sys.stderr)
            return False

    def put(self, line: str | None) -> None:
        """Read this line next; None is the end."""
        self._waiting.append(line)

    def take_default(self) -> str:
        """Return the text to begin a line with, once."""
        default, self._default = self._default, ""
        return default


def waiting_line(lines: deque[str | None]) -> str:
    """Return a line that was typed ahead. Raises EOFError, and PromptError if it is not UTF-8."""
    line = lines.popleft()
    if line is None:
        raise EOFError
    return check_typed(line, WHAT)


def _with_readline(reader: PlainReader, lines: list[str]) -> bool:
    """Set Python's line editing up, and return whether there is one; Windows has none."""
    _use_utf8()
    try:
        import readline
    except ImportError:
        return False
    readline.set_auto_history(False)
    for line in lines:
        readline.add_history(line)
    found: list[str] = []

    def complete(_: str, state: int) -> str | None:
        if not state:
            before = readline.get_line_buffer()[: readline.get_endidx()]
            end, texts = completed(before)
            # readline replaces the word at the cursor, which is less than the path.
            skipped = len(end) - (readline.get_endidx() - readline.get_begidx())
            found[:] = [text[skipped:] for text in texts] if skipped >= 0 else []
        return found[state] if state < len(found) else None

    def begin() -> None:
        readline.insert_text(reader.take_default())

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.set_startup_hook(begin)
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    if not libedit:  # a paste of several lines is one text, as Python's own prompt does not want it
        readline.parse_and_bind("set enable-bracketed-paste on")
    return True


def _use_utf8() -> None:
    """Let readline read UTF-8 where the locale is C; it would take each byte of a character for a key.

    For each line, it takes the locale from the environment.
    """
    if sys.platform != "win32" and locale.nl_langinfo(locale.CODESET) in _ASCII:
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
            os.environ["LC_ALL"] = "C.UTF-8"


def _remember(text: str) -> None:
    with contextlib.suppress(ImportError):
        import readline

        readline.add_history(text)
