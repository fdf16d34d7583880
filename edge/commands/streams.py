"""The standard streams as verbs find them: any text can be printed, and what does not arrive is one error.

In: what the process was given as stdin, stdout and stderr. Out: `guarded`, under which print and argparse write through
the guards of this file, and bytes read from stdin and other pipes. Knows nothing about what is printed.

    a file or a pipe                 UTF-8, whatever the code page is, unless the environment names an encoding
    closed when the process starts   /dev/null in its place, or the next file that is opened would get its number;
                                     stdout and verbs that want stdin raise an error, stderr is done without
    an encoding that lacks a letter  \\u2603 in its place
    a terminal                       control characters of a text are shown and not obeyed
    a disk that is full              OutputError; on stderr there is no one left to tell
    a reader that has left           ReaderLeft, for a quiet end
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from edge.runtime.errors import OutputError, PromptError, SettingsError
from edge.runtime.files import SMALL_BYTES
from edge.runtime.terminal_text import visible
from edge.runtime.unicode import told_encoding

_STDIN = "standard input"


class ReaderLeft(BrokenPipeError):
    """The reader of stdout has gone, like `head` after its lines."""


class _Guard(io.TextIOWrapper):
    """A second writer to a stream's bytes. Raises OutputError and ReaderLeft unless `quiet`."""

    def __init__(self, stream: io.TextIOWrapper, *, quiet: bool) -> None:
        stream.flush()
        self.unguarded: TextIO = stream
        self._terminal, self._quiet = stream.isatty(), quiet
        super().__init__(
            stream.buffer,
            stream.encoding if self._terminal or told_encoding() else "utf-8",
            "backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def write(self, text: str) -> int:
        with self._told():
            super().write(visible(text) if self._terminal else text)
        return len(text)

    def flush(self) -> None:
        with self._told():
            super().flush()

    def end(self) -> None:
        """Leave the bytes to the stream. What cannot be written, as has been told, is dropped."""
        with contextlib.suppress(OSError, OutputError):
            self.flush()
            self.detach()
            return
        with contextlib.suppress(OSError):  # no file number: a stream of a test's
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            self.detach()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the system as those of this file."""
        try:
            yield
        except OSError as error:
            if self._quiet:
                return
            # Windows says EINVAL of a pipe whose other end is closed.
            if error.errno == errno.EPIPE or (sys.platform == "win32" and error.errno == errno.EINVAL):
                raise ReaderLeft from error
            raise OutputError(
                f"standard output cannot be written ({error.strerror or error}); free some space or send it elsewhere"
            ) from error


@contextmanager
def guarded() -> Iterator[None]:
    """Put guards in the place of stdout and stderr, for as long as this lasts."""
    _fill_closed()
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w") as null:
        sys.stdout, sys.stderr = _guard(sys.stdout, quiet=False), _guard(sys.stderr or null, quiet=True)
        try:
            yield
        finally:
            for guard in (sys.stdout, sys.stderr):
                if isinstance(guard, _Guard):
                    guard.end()
            sys.stdout, sys.stderr = before


def unguarded(stream: TextIO) -> TextIO:
    """The stream under a guard, for what draws on a terminal by escape sequences of its own."""
    return stream.unguarded if isinstance(stream, _Guard) else stream


def check_stdout() -> None:
    """Raises OutputError where there is none: whatever a verb does, it could not say."""
    if sys.stdout is None:
        raise OutputError("standard output is closed; send it to a file, a pipe or a terminal")


def check_stdin() -> None:
    """Raises PromptError where there is none."""
    if sys.stdin is None:
        raise PromptError(f"{_STDIN} is closed; send something to it, from a file, a pipe or a terminal")


def read_stdin() -> bytes:
    """All of it. Raises PromptError where there is none, too much of it, or it cannot be read."""
    check_stdin()
    try:
        data = sys.stdin.buffer.read(SMALL_BYTES + 1)
    except OSError as error:
        raise PromptError(f"{_STDIN} cannot be read ({error.strerror or error}); send a text to it") from error
    if len(data) > SMALL_BYTES:
        raise PromptError(f"{_STDIN} has more than {SMALL_BYTES:,} bytes; send a shorter text")
    return data


def read_pipe(path: Path) -> bytes:
    """What comes out of a pipe with a name, as shells give one for `<(command)`; nothing if it has no writer.

    Raises OSError, and SettingsError for too much of it.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # opening does not wait for a writer
    with os.fdopen(descriptor, "rb") as file:
        os.set_blocking(descriptor, True)  # the writer may take its time
        data = file.read(SMALL_BYTES + 1)
    if len(data) > SMALL_BYTES:
        raise SettingsError(f"{path} gives more than {SMALL_BYTES:,} bytes; give a shorter text")
    return data


def _guard(stream: TextIO, *, quiet: bool) -> TextIO:
    """A stream of another kind, as tests have them, can take any text; a closed one stays None."""
    return _Guard(stream, quiet=quiet) if isinstance(stream, io.TextIOWrapper) else stream


def _fill_closed() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
