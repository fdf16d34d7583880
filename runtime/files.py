"""Opening a file that somebody else wrote, and reading a small one whole, or any into its hash.

In: a path, the most bytes it may have, and the error that its reader raises. Out: the file, or its bytes. What is no
ordinary file (a named pipe that blocks for ever, a device without an end) is refused before it is read. Knows nothing
about what is in it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from edge.runtime.errors import EdgeError

SMALL_BYTES = 100_000_000  # a tokenizer for 151,552 tokens has 20 MB; safetensors allows its headers as much as this
_SHOWN = 300  # characters of a path in a message


def open_file(path: Path, error: type[EdgeError], advice: str) -> BinaryIO:
    """An ordinary file, opened for reading. Raises `error`, its message ended by `advice`, for everything else."""
    try:
        # Without O_NONBLOCK, opening a named pipe waits for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as problem:  # ValueError: a zero byte in the path
        raise _unreadable(path, problem, error, advice) from problem
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{shown_path(path)} is no ordinary file; {advice}")
    return os.fdopen(descriptor, "rb")


def read_file(path: Path, error: type[EdgeError], advice: str, *, max_bytes: int = SMALL_BYTES) -> bytes:
    """The bytes of an ordinary file.

    Raises `error`, its message ended by `advice`, for what is not there, no ordinary file, larger than `max_bytes`, or
    cannot be read.
    """
    with open_file(path, error, advice) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            content = file.read(max_bytes + 1) if size <= max_bytes else b""
        except OSError as problem:
            raise _unreadable(path, problem, error, advice) from problem
    if (size := max(size, len(content))) > max_bytes:
        raise error(f"{shown_path(path)} has {size:,} bytes, expected at most {max_bytes:,}; {advice}")
    return content


def _unreadable(path: Path, problem: OSError | ValueError, error: type[EdgeError], advice: str) -> EdgeError:
    reason = problem.strerror if isinstance(problem, OSError) else None
    return error(f"{shown_path(path)} cannot be read ({reason or problem}); {advice}")


def is_file(path: Path) -> bool:
    """Whether an ordinary file is there; False for a path that cannot be one, too."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return False


def shown_path(path: object) -> str:
    """A path as a message names it: whole, unless it is very long, and without what cannot be printed."""
    text = str(path)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
