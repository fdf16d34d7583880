"""Lines that were typed in earlier chats, in a file that only its owner can read.

In: a path. Out: the lines, oldest first; new ones are added at once. Knows nothing about prompts and keys.

The file has a JSON text on each line, so that a message of several lines is one. It keeps the last `MOST`. What was
typed after a leading space is never kept, as in shells. Whatever is wrong with the file is one warning, and the chat
continues with the lines of its own time alone: a history is not worth a conversation.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from edge.runtime.atomic import write_atomically
from edge.runtime.cache_folder import cache_folder
from edge.runtime.errors import EdgeError, OutputError
from edge.runtime.files import read_file, shown_path
from edge.runtime.json_reader import parse_json

FILE = "chat-history.jsonl"
MOST = 1000  # lines
LONGEST = 20_000  # characters of a line that is worth keeping
MAX_BYTES = 50_000_000
_SURROGATE = re.compile("[\ud800-\udfff]")  # a stand-in for bytes that are not UTF-8
_ADVICE = "remove it, or chat with --no-history"


class History:
    """Lines of this chat and of earlier ones."""

    def __init__(self, path: Path | None, warn: Callable[[str], None]) -> None:
        """path: None keeps nothing beyond this chat. `warn` is called at most once."""
        self._path, self._warn = path, warn
        self.lines: list[str] = []
        if path is not None:
            self._guard(self._open)

    def add(self, line: str) -> bool:
        """Add a line, and return whether it is worth it.

        It is not if it is empty, repeats the last one, is not valid text, or begins with a space.
        """
        if not line.strip() or line[:1].isspace() or self.lines[-1:] == [line] or _SURROGATE.search(line):
            return False
        self.lines.append(line)
        if self._path is not None and len(line) <= LONGEST:
            self._guard(lambda: self._append(line))
        return True

    def _guard(self, action: Callable[[], None]) -> None:
        """Do something with the file; give it up when that fails."""
        try:
            action()
        except (EdgeError, OSError) as error:
            reason = error if isinstance(error, EdgeError) else f"{self._path}: {error.strerror or error}"
            self._warn(f"what you type is not kept for later chats: {reason}")
            self._path = None

    def _open(self) -> None:
        """Read the file, and write it anew if it has grown or its last line is cut."""
        assert self._path is not None
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.path.lexists(self._path):
            return
        _check_ours(self._path)
        content = read_file(self._path, OutputError, _ADVICE, max_bytes=MAX_BYTES)
        *whole, cut = content.split(b"\n")  # without a line end, the last was being written when the power failed
        lines = [_line(self._path, line) for line in whole]
        self.lines = lines[-MOST:]
        if cut or len(lines) > 2 * MOST:
            write_atomically(self._path, [_encoded(line) for line in self.lines])

    def _append(self, line: str) -> None:
        assert self._path is not None
        more = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | more, 0o600)
        try:
            _check_kind(self._path, os.fstat(descriptor))
            if sys.platform != "win32":
                os.fchmod(descriptor, 0o600)  # whatever a umask or a copy made of it
            os.write(descriptor, _encoded(line))  # in one call, so that chats at the same time do not mix
        finally:
            os.close(descriptor)


def default_path() -> Path:
    """Return where the history is. Raises OutputError for a user without a home."""
    return cache_folder() / FILE


def _encoded(line: str) -> bytes:
    return json.dumps(line).encode("ascii") + b"\n"


def _line(path: Path, data: bytes) -> str:
    line = parse_json(data, shown_path(path), OutputError, _ADVICE)
    if not isinstance(line, str):
        raise OutputError(f"{shown_path(path)} holds something else than a history; {_ADVICE}")
    return line


def _check_ours(path: Path) -> None:
    """Raises OutputError for a link, a pipe, or somebody else's file; OSError."""
    status = os.lstat(path)
    _check_kind(path, status)
    if sys.platform != "win32" and status.st_mode & 0o077:
        path.chmod(0o600)


def _check_kind(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OutputError(f"{shown_path(path)} is not an ordinary file; {_ADVICE}")
    if sys.platform != "win32" and status.st_uid != os.geteuid():
        raise OutputError(f"{shown_path(path)} belongs to another user; {_ADVICE}")
