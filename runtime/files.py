"""Opening files from elsewhere, reading small ones whole, and hashing them.

In: a path, the most bytes it may have, and the error that its reader raises. Out: the file, its bytes, or its hash. A
path that is not an ordinary file (a named pipe that blocks for ever, an endless device) is refused before it is read.
Knows nothing about the content.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from edge.runtime.errors import EdgeError

SMALL_BYTES = 100_000_000  # a tokenizer for 151,552 tokens has 20 MB; safetensors allows its headers as much as this
_PART = 1 << 20
_SHOWN = 300  # characters of a path in a message


def open_file(path: Path, error: type[EdgeError], advice: str) -> BinaryIO:
    """Open an ordinary file for reading. Raises `error`, with `advice` at the end of its message, for anything else."""
    try:
        # Without O_NONBLOCK, opening a named pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as problem:  # ValueError: a zero byte in the path
        raise _unreadable(path, problem, error, advice) from problem
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{shown_path(path)} is not an ordinary file; {advice}")
    return os.fdopen(descriptor, "rb")


def read_file(path: Path, error: type[EdgeError], advice: str, *, max_bytes: int = SMALL_BYTES) -> bytes:
    """Return the bytes of an ordinary file.

    Raises `error`, with `advice` at the end of its message, for a path that is missing, not an ordinary file, larger
    than `max_bytes`, or unreadable.
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


def is_blank(path: Path) -> bool:
    """Whether a file has nothing but zeros, as a power cut leaves what was not on the disk yet. Raises OSError."""
    with path.open("rb") as file:
        return not any(any(part) for part in iter(lambda: file.read(_PART), b""))


def is_file(path: Path) -> bool:
    """Whether a path is an ordinary file; False, too, for a path that cannot be one."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return False


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return an absolute path without links; unlike `Path.resolve`, not an error for a loop of links or a zero byte.

    Such a path is returned as far as it leads. Opening it tells what is wrong.
    """
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        return Path(path).absolute()


def shown_path(path: object) -> str:
    """Return a path as a message names it: unprintable characters escaped, and cut if it is very long."""
    text = str(path)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_in(folder: Path) -> int:
    """Return the bytes of all files in a folder and below it. Links are not followed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118  # of names that may be any bytes
    return total
