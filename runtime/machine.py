"""What this machine has: cores and memory that the process may use, and how much it has used.

In: nothing. Out: numbers, read from the system at every call; None for what it does not tell.

Linux is asked directly: control groups, and which cores a process may use, are known nowhere else. Any other system is
asked through psutil; a slim install has none, and knows little there.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


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


def physical_cores() -> int | None:
    """Return how many cores this process may run on, at least 1; None if the system does not tell.

    Two threads of a core count once: they share its vector units, which one thread keeps busy.
    """
    if hasattr(os, "sched_getaffinity"):
        return max(len({_core_of(processor) for processor in os.sched_getaffinity(0)}), 1)
    if (process := _process()) is None:
        return None
    import psutil

    cores = psutil.cpu_count(logical=False)
    with suppress(psutil.Error, OSError, AttributeError):  # macOS keeps no process off a core
        cores = min(cores or 0, len(process.cpu_affinity()))
    return cores or None


def _core_of(processor: int) -> str:
    """Return what processors of the same core have in common."""
    path = Path(_SIBLINGS.format(processor))
    return path.read_text().strip() if path.exists() else str(processor)


def logical_processors() -> int:
    """Return how many processors the whole machine schedules threads on, at least 1."""
    return os.cpu_count() or 1


def total_bytes() -> int | None:
    """Return the memory of the whole machine; None if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        if _process() is None:
            return None
        import psutil

        return int(psutil.virtual_memory().total)


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes that can be used without swapping, or being killed for it; None if the system does not tell.

    This is the machine's memory, or what the control groups of this process leave of it, as in a container or service.
    root: the folder of /proc and /sys.
    """
    kilobytes = _number(root / "proc/meminfo", "MemAvailable:")
    free = None if kilobytes is None else kilobytes * 1024
    if free is None and _process() is not None:
        import psutil

        free = psutil.virtual_memory().available
    return min((room for room in (free, *_group_rooms(root)) if room is not None), default=None)


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
        process = _process()
        return None if process is None else getattr(process.memory_info(), "peak_wset", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss_bytes() -> int | None:
    """Return the resident memory of this process now; None if the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError, AttributeError):
        process = _process()
        return None if process is None else process.memory_info().rss


def _process() -> psutil.Process | None:
    """Return this process as psutil sees it; None without psutil."""
    try:
        import psutil
    except ImportError:
        return None
    return psutil.Process()


def processor_name() -> str:
    """Return the processor's name for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
