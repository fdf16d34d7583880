"""Large files that were read and found correct once, and have not been touched since.

In: a file and the sha256 that it should have. Out: whether it has. Knows nothing about bundles.

Files found correct are remembered in the user's cache folder, as a list of hashes that reveal nothing: of the file's
path, size, times and inode number, and of its sha256. Writing to a file or replacing it changes one of these. A failing
disk can change bytes without that, which only reading the whole file anew finds. Without a folder to write to, every
process reads every file once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from pathlib import Path

from edge.runtime.cache_lines import CacheLines
from edge.runtime.files import sha256_of

MOST = 500  # files to remember; the oldest are forgotten
FILE = "checked-files"
LIST = CacheLines(FILE, re.compile("[0-9a-f]{64}"), MOST, line_bytes=1000)
# Two writes within one tick of a file's times look like one (up to 2 s on FAT), so only older files are remembered.
SETTLED_NS = 3 * 10**9


class KnownFiles:
    """The files that this process found correct, besides those in the cache folder."""

    def __init__(self) -> None:
        self._right: set[str] = set()

    def is_right(self, path: Path, sha256: str, *, anew: bool = False) -> bool:
        """Whether a file has this sha256 and does not change. It is read if that is not known, or with `anew`.

        Raises OSError.
        """
        before = path.stat()
        stamp = _stamp(path, before, sha256)
        if not anew and (stamp in self._right or stamp in LIST.read()):
            return True
        settled = time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > SETTLED_NS
        if sha256_of(path) != sha256 or _stamp(path, path.stat(), sha256) != stamp:  # written to while it was read
            return False
        self._right.add(stamp)
        if settled:
            LIST.add(stamp, lambda other: other == stamp)
        return True


def _stamp(path: Path, status: os.stat_result, sha256: str) -> str:
    """Return what is remembered of a file in its present state."""
    parts = [os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, sha256]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
