"""What this machine has: cores and memory that the process may use, and how much it has used.

In: nothing. Out: numbers, read from the system at every call. They are most exact on Linux.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PLENTY = 1 << 62


@dataclass(frozen=True, slots=True)
class _GroupKind:
    """One version of Linux's control groups: where it is mounted, and its files."""

    unified: bool  # version 2, whose line in /proc/self/cgroup names no controllers
    mount: str
    limits: tuple[str, ...]  # beyond memory.high, a group is slowed down to a crawl
    used: str
    cached: str  # the line of memory.stat


_V2 = (("memory.max", "memory.high"), "memory.current", "inactive_file ")
_GROUP_KINDS = (
    _GroupKind(True, "sys/fs/cgroup", *_V2),
    _GroupKind(True, "sys/fs/cgroup/unified", *_V2),  # beside version 1
    _GroupKind(
        False, "sys/fs/cgroup/memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file "
    ),
)
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def physical_cores() -> int:
    """Return how many cores this process may run on, at least 1. Two threads of a core count once.

    They share its vector units, which one thread keeps busy.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        path = Path(_SIBLINGS.format(cpu))
        cores.add(path.read_text().strip() if path.exists() else str(cpu))
    return max(len(cores), 1)


def logical_processors() -> int:
    """Return how many processors the whole machine schedules threads on, at least 1."""
    return os.cpu_count() or 1


def available_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that can be used without swapping, or being killed for it; PLENTY if the system does not tell.

    This is the machine's memory, or what the control groups of this process leave of it, as in a container or service.
    root: the folder of /proc and /sys.
    """
    free = _number(root / "proc/meminfo", "MemAvailable:")
    return min([PLENTY if free is None else free * 1024, *_group_rooms(root)])


def _group_rooms(root: Path) -> Iterator[int]:
    """Yield the bytes left of each memory limit of this process's control group and of its parents."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if controllers == "" or "memory" in controllers.split(","):
            for kind in _GROUP_KINDS:
                if kind.unified == (controllers == ""):
                    yield from _rooms_along(root / kind.mount, path, kind)


def _rooms_along(mount: Path, path: str, kind: _GroupKind) -> Iterator[int]:
    """Go from the process's group up to the mounted one. A container sees only that one, and paths outside of it."""
    names = [name for name in path.split("/") if name not in ("", "..")]
    for depth in range(len(names), -1, -1):
        folder = mount.joinpath(*names[:depth])
        limits = [limit for name in kind.limits if (limit := _number(folder / name)) is not None]
        used = _number(folder / kind.used)
        if limits and used is not None:
            cached = _number(folder / "memory.stat", kind.cached) or 0  # file pages, which the system drops first
            yield max(min(limits) - max(used - cached, 0), 0)


def _number(path: Path, field: str = "") -> int | None:
    """Return the number after a field's name, or at the beginning of a file; None if there is none ("max")."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    words = next((line[len(field) :].split() for line in lines if line.startswith(field)), [])
    return int(words[0]) if words and words[0].isdigit() else None


def family_of(device: str) -> str:
    """Return the kind of a device: "GPU" for "gpu.1"."""
    return device.split(".", maxsplit=1)[0].upper()


def peak_rss_bytes() -> int | None:
    """Return the largest resident memory of this process so far; None if the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss_bytes() -> int | None:
    """Return the resident memory of this process now; None if the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def processor_name() -> str:
    """Return the processor's name for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
