"""What this machine has: cores and memory that the process may use, and how much it has used.

In: nothing. Out: numbers, read from the system at every call; None for what it does not tell.

Linux is asked directly: control groups, and which cores a process may use, are known nowhere else. Any other system is
asked through psutil; a slim install has none, and knows little there.
"""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge.runtime.control_groups import group_limits, number_in
from edge.runtime.process_limits import job_limits, rlimits

if TYPE_CHECKING:
    import psutil


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A bound on the memory that this process may take, and what it leaves now."""

    name: str  # who sets it: "this machine", "the container"
    total_bytes: int
    left_bytes: int  # without swapping, or being slowed down
    most_bytes: int  # if the system drops and swaps whatever it can; beyond it, the process fails or is ended
    addresses: bool = False  # addresses count, whether they are used or not


NEVER = 1 << 62  # bytes that no process reaches
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def physical_cores() -> int | None:
    """Return how many cores this process may run on, at least 1; None if the system does not tell.

    Two threads of a core count once: they share its vector units, which one thread keeps busy.
    """
    if hasattr(os, "sched_getaffinity"):
        return max(len(processors_by_core()), 1)
    if (process := _process()) is None:
        return None
    import psutil

    cores = psutil.cpu_count(logical=False)
    with suppress(psutil.Error, OSError, AttributeError):  # macOS keeps no process off a core
        cores = min(cores or 0, len(process.cpu_affinity()))
    return cores or None


def processors_by_core() -> list[tuple[int, ...]]:
    """Return the processors that this thread may run on, those of one core together. On Linux only."""
    cores: dict[str, list[int]] = {}
    for processor in sorted(os.sched_getaffinity(0)):
        cores.setdefault(_core_of(processor), []).append(processor)
    return [tuple(processors) for processors in cores.values()]


def computing_threads(asked: int | None) -> int | None:
    """Return how many threads are to compute: one for each core unless a number is asked for; None if that is unknown.

    There are never more than processors, on which the others would only wait: an OpenVINO plugin bounds them likewise.
    """
    return physical_cores() if asked is None else min(asked, logical_processors())


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

    This is what the tightest of `memory_limits` leaves. root: the folder of /proc and /sys.
    """
    return min((limit.left_bytes for limit in memory_limits(root)), default=None)


def memory_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """Return every bound on this process's memory: the machine's own, and what is set for it or around it.

    Whatever decides by memory asks here. root: the folder of /proc and /sys.
    """
    free, swap = _machine(root), number_in(root / "proc/meminfo", "SwapFree:")
    swap_bytes = (swap or 0) * 1024
    found = [] if free is None else [free]
    for group in group_limits(root):
        left = max(group.limit_bytes - group.used_bytes, 0)
        swappable = swap_bytes if group.swap_bytes is None else min(swap_bytes, group.swap_bytes)
        most = group.limit_bytes - max(group.used_bytes - group.file_bytes, 0) + swappable
        most = max(most, left) if group.kills else max(most, left, NEVER)
        found.append(MemoryLimit(group.name, group.limit_bytes, left, most))
    for own in (*rlimits(root), *job_limits(_committed_bytes())):
        left = max(own.limit_bytes - own.used_bytes, 0)
        found.append(MemoryLimit(own.name, own.limit_bytes, left, left, addresses=True))
    return found


def _machine(root: Path) -> MemoryLimit | None:
    """Return what the whole machine has; None if the system does not tell."""
    meminfo = root / "proc/meminfo"
    total, free, swap = (number_in(meminfo, field) for field in ("MemTotal:", "MemAvailable:", "SwapFree:"))
    if free is not None:
        dropped = (number_in(meminfo, field) or 0 for field in ("MemFree:", "Active(file):", "Inactive(file):"))
        most = max(free, sum(dropped)) + (swap or 0)
        return MemoryLimit("this machine", max(total or 0, free) * 1024, free * 1024, most * 1024)
    if _process() is None:
        return None
    import psutil

    memory, swap_bytes = psutil.virtual_memory(), 0
    with suppress(psutil.Error, OSError, RuntimeError):  # some systems do not tell
        swap_bytes = int(psutil.swap_memory().free)
    return MemoryLimit("this machine", int(memory.total), int(memory.available), int(memory.available) + swap_bytes)


def _committed_bytes() -> int:
    """Return the memory that this process could write to, as Windows counts it; 0 elsewhere."""
    process = _process() if sys.platform == "win32" else None
    return 0 if process is None else int(getattr(process.memory_info(), "private", 0))


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


def anonymous_bytes() -> int | None:
    """Return the resident memory of this process that the system cannot drop; None if the system does not tell.

    Pages of mapped files do not count: they can be read again.
    """
    status = Path("/proc/self/status")
    kilobytes = [number_in(status, field) for field in ("RssAnon:", "RssShmem:", "VmSwap:")]
    if kilobytes[0] is not None:
        return 1024 * sum(number or 0 for number in kilobytes)
    process = _process()
    if process is None:
        return None
    memory = process.memory_info()
    return int(getattr(memory, "private", memory.rss))


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
