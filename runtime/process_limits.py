"""Limits on the memory of this process that are not control groups: those of `ulimit`, and jobs of Windows.

In: nothing. Out: one `ProcessLimit` for each. What they count differs: `ulimit -v` counts addresses, and `ulimit -d`
addresses that can be written to, whether they are used or not; a job counts what a process may write to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.runtime.control_groups import number_in

_JOB_EXTENDED_LIMITS = 9  # JobObjectExtendedLimitInformation
_OF_PROCESS, _OF_JOB = 0x100, 0x200  # JOB_OBJECT_LIMIT_PROCESS_MEMORY, JOB_OBJECT_LIMIT_JOB_MEMORY


@dataclass(frozen=True, slots=True)
class ProcessLimit:
    """A limit, and what this process has used of it."""

    name: str
    limit_bytes: int
    used_bytes: int
    mapped: bool  # whether files that are mapped into memory count, too


def rlimits(root: Path = Path("/")) -> Iterator[ProcessLimit]:
    """Yield the limits of `ulimit`; none on a system without them, or where what is used is not known."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, which, field, mapped in (
        ("ulimit -v", resource.RLIMIT_AS, "VmSize:", True),
        ("ulimit -d", resource.RLIMIT_DATA, "VmData:", False),
    ):
        limit, used = resource.getrlimit(which)[0], number_in(root / "proc/self/status", field)
        if limit != resource.RLIM_INFINITY and used is not None:
            yield ProcessLimit(name, limit, used * 1024, mapped)


class _Basic(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION."""

    _fields_ = (
        ("per_process_time", ctypes.c_int64),
        ("per_job_time", ctypes.c_int64),
        ("flags", ctypes.c_uint32),
        ("least_working_set", ctypes.c_size_t),
        ("most_working_set", ctypes.c_size_t),
        ("processes", ctypes.c_uint32),
        ("affinity", ctypes.c_size_t),
        ("priority", ctypes.c_uint32),
        ("scheduling", ctypes.c_uint32),
    )


class JobLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION."""

    _fields_ = (
        ("basic", _Basic),
        ("io", ctypes.c_uint64 * 6),
        ("process_memory", ctypes.c_size_t),
        ("job_memory", ctypes.c_size_t),
        ("peak_process_memory", ctypes.c_size_t),
        ("peak_job_memory", ctypes.c_size_t),
    )


def job_limits(used_bytes: int, library: Any = None) -> Iterator[ProcessLimit]:  # Any: a library has no types
    """Yield the limits of the job of Windows that this process runs in, if any.

    used_bytes: what this process could write to now; other processes of the job are not seen. library: kernel32.
    """
    if library is None:
        if (load := getattr(ctypes, "WinDLL", None)) is None:  # not Windows
            return
        library = load("kernel32")
    found = JobLimits()
    size = ctypes.sizeof(found)
    if not library.QueryInformationJobObject(None, _JOB_EXTENDED_LIMITS, ctypes.byref(found), size, None):
        return  # in no job
    for flag, limit in ((_OF_PROCESS, found.process_memory), (_OF_JOB, found.job_memory)):
        if found.basic.flags & flag:
            yield ProcessLimit("the job of this process", int(limit), used_bytes, mapped=False)
