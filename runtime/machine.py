"""What this machine has: cores and memory that the process may use, and how much it has used.

In: nothing. Out: numbers, asked of the system at every call. Linux tells most; elsewhere the answers are coarser.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def physical_cores() -> int:
    """Cores this process may run on, with threads of one core counted once; at least 1.

    Two threads of a core share its vector units, which one keeps busy.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        path = Path(_SIBLINGS.format(cpu))
        cores.add(path.read_text().strip() if path.exists() else str(cpu))
    return max(len(cores), 1)


def available_bytes() -> int:
    """Memory that can be had without swapping; what cannot be told counts as plenty."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 62
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def family_of(device: str) -> str:
    """The kind of a device: "GPU" of "gpu.1"."""
    return device.split(".", maxsplit=1)[0].upper()


def peak_rss_bytes() -> int | None:
    """Largest resident memory of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def processor_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
