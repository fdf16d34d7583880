"""Large files that were read and found right once, and were not touched since.

In: a file and the sha256 that it should have. Out: whether it has. Knows nothing about bundles.

What was found right is remembered in the user's cache folder, as a list of hashes that tell nobody what they are of: of
the file's place, size, times and number on its disk, and of its sha256. Whatever writes to a file or puts another in
its place changes one of these. What changes bytes behind the system's back (a disk that fails) does not, and is found
by reading all of it anew. Without a folder to write to, every process reads every file once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from pathlib import Path

from edge.runtime.atomic import write_atomically
from edge.runtime.cache_folder import cache_folder
from edge.runtime.errors import OutputError
from edge.runtime.files import is_file, read_file, sha256_of

MOST = 500  # files that are remembered; the oldest are forgotten
FILE = "checked-files"
_STAMP = re.compile("[0-9a-f]{64}")
# A file may be written twice within one tick of its times: up to 2 s on FAT. It is remembered when it is older.
SETTLED_NS = 3 * 10**9


class KnownFiles:
    """What this process found right, besides what the cache folder knows of."""

    def __init__(self) -> None:
        self._right: set[str] = set()

    def is_right(self, path: Path, sha256: str, *, anew: bool = False) -> bool:
        """Whether a file has this sha256, and keeps still. It is read where that is not known, or `anew`.

        Raises OSError.
        """
        before = path.stat()
        stamp = _stamp(path, before, sha256)
        if not anew and (stamp in self._right or _is_remembered(stamp)):
            return True
        settled = time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > SETTLED_NS
        if sha256_of(path) != sha256 or _stamp(path, path.stat(), sha256) != stamp:  # written to while it was read
            return False
        self._right.add(stamp)
        if settled:
            _remember(stamp)
        return True


def _stamp(path: Path, status: os.stat_result, sha256: str) -> str:
    """What is remembered of a file as it is now."""
    parts = [os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, sha256]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _is_remembered(stamp: str) -> bool:
    with contextlib.suppress(OutputError):
        return stamp in _remembered()
    return False


def _remembered() -> list[str]:
    """Stamps, the oldest first. Raises OutputError for a file of somebody else."""
    path = cache_folder() / FILE
    if not is_file(path):
        return []
    lines = read_file(path, OutputError, "remove it", max_bytes=1000 * MOST).decode("ascii", "replace").splitlines()
    if not all(_STAMP.fullmatch(line) for line in lines):
        raise OutputError(f"{path} is there and holds something else; remove it")
    return lines


def _remember(stamp: str) -> None:
    """Put a stamp behind the others; nothing happens where that cannot be written."""
    with contextlib.suppress(OutputError, OSError):
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = [line for line in _remembered() if line != stamp][1 - MOST :]
        write_atomically(folder / FILE, ["".join(f"{line}\n" for line in (*lines, stamp)).encode()])
