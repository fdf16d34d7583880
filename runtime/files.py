"""Reading a whole file that somebody else wrote: a small one into memory, any into its hash.

In: a path, the most bytes it may have, and the error that its reader raises. Out: its bytes. What is no ordinary file
(a named pipe that blocks for ever, a device without an end) is refused before it is read. Knows nothing about what is
in it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from edge.runtime.errors import EdgeError

SMALL_BYTES = 100_000_000  # a tokenizer for 151,552 tokens has 20 MB; safetensors allows its headers as much as this


def read_file(path: Path, error: type[EdgeError], advice: str, *, max_bytes: int = SMALL_BYTES) -> bytes:
    """The bytes of an ordinary file.

    Raises `error`, its message ended by `advice`, for what is not there, no ordinary file, larger than `max_bytes`, or
    cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe waits for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{path} is no ordinary file; {advice}")
            content = file.read(max_bytes + 1) if status.st_size <= max_bytes else b""
    except (OSError, ValueError) as problem:  # ValueError: a zero byte in the path
        reason = problem.strerror if isinstance(problem, OSError) else None
        raise error(f"{path} cannot be read ({reason or problem}); {advice}") from problem
    if status.st_size > max_bytes or len(content) > max_bytes:
        size = max(status.st_size, len(content))
        raise error(f"{path} has {size:,} bytes, expected at most {max_bytes:,}; {advice}")
    return content


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
