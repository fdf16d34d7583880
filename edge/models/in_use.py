"""Which other processes have a file of a folder open or in their memory.

In: a folder. Out: numbers and names of processes, as far as this user may see them: on Linux. Elsewhere nothing is
known, and Windows itself refuses to remove what is in use.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")


def users_of(folder: Path) -> list[tuple[int, str]]:
    """Return the other processes that use what is in a folder."""
    if sys.platform != "linux":
        return []
    beginning = os.path.realpath(folder) + os.sep
    found = []
    with contextlib.suppress(OSError):
        for place in _PROC.iterdir():
            if place.name.isdigit() and int(place.name) != os.getpid() and _uses(place, beginning):
                found.append((int(place.name), _name(place)))
    return sorted(found)


def _uses(place: Path, beginning: str) -> bool:
    return any(path.startswith(beginning) for path in (*_mapped(place), *_opened(place)))


def _mapped(place: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):  # it ended, or is another user's
        for line in (place / "maps").read_text("utf-8", "surrogateescape").splitlines():
            if slash := line.find("/") + 1:
                yield line[slash - 1 :].replace("\\012", "\n")


def _opened(place: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for link in (place / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(link.readlink())


def _name(place: Path) -> str:
    with contextlib.suppress(OSError):
        return ascii((place / "comm").read_text("utf-8", "replace").strip())[1:-1]
    return "a process"
