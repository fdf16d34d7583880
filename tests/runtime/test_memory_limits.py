"""Whose limit holds, what it leaves, and beyond what it ends a process: groups, ulimit, jobs of Windows.

The system's files are made, as Linux writes them (`test_machine.py`).
"""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.runtime import process_limits
from edge.runtime.machine import NEVER, MemoryLimit, anonymous_bytes, memory_limits, rss_bytes
from edge.runtime.process_limits import JobLimits, job_limits
from tests.runtime.test_machine import FREE, GB, MEMINFO, V1, V2, system

KB = 1024
TIGHT = MEMINFO + "Active(file):     400000 kB\nInactive(file): 18000000 kB\nSwapFree:       2000000 kB\n"


def limits(root: Path) -> dict[str, MemoryLimit]:
    return {limit.name: limit for limit in memory_limits(root)}


def test_the_machine_may_drop_and_swap_more_than_it_calls_free(tmp_path: Path) -> None:
    root = system(tmp_path, "", {}, TIGHT)
    most = (1_000_000 + 400_000 + 18_000_000 + 2_000_000) * KB
    assert limits(root) == {"this machine": MemoryLimit("this machine", 32_000_000 * KB, FREE, most)}


@pytest.mark.parametrize(
    ("cgroup", "folder", "name"),
    [
        ("0::/\n", V2, "the container"),
        ("0::/../../b\n", V2, "the container"),
        ("0::/system.slice/docker-0123abc.scope\n", f"{V2}/system.slice/docker-0123abc.scope", "the container"),
        ("0::/kubepods.slice/pod1/abc\n", f"{V2}/kubepods.slice/pod1", "the container"),
        ("5:memory:/docker/abc\n", V1, "the container"),
        ("0::/system.slice/edge.service\n", f"{V2}/system.slice/edge.service", "the control group edge.service"),
        ("0::/user.slice/user-7.slice/a.scope\n", f"{V2}/user.slice/user-7.slice", "the control group user-7.slice"),
    ],
)
def test_who_sets_a_limit(tmp_path: Path, cgroup: str, folder: str, name: str) -> None:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if folder == V1 else ("memory.max", "memory.current")
    root = system(tmp_path, cgroup, {f"{folder}/{names[0]}": GB, f"{folder}/{names[1]}": GB // 4})
    found = limits(root)[name]
    assert (found.total_bytes, found.left_bytes, found.most_bytes) == (GB, GB - GB // 4, GB - GB // 4)


def test_a_group_drops_files_and_swaps_what_it_may(tmp_path: Path) -> None:
    files: dict[str, int | str] = {
        f"{V2}/a/memory.max": 4 * GB,
        f"{V2}/a/memory.current": 3 * GB,
        f"{V2}/a/memory.stat": f"anon {GB}\ninactive_file {GB}\nactive_file {GB}\n",
    }
    root = system(tmp_path, "0::/a\n", files, TIGHT)
    found = limits(root)["the control group a"]
    assert (found.left_bytes, found.most_bytes) == (2 * GB, 3 * GB + 2_000_000 * KB)  # all swap of the machine
    (root / f"{V2}/a/memory.swap.max").write_text(f"{GB}\n")
    (root / f"{V2}/a/memory.swap.current").write_text(f"{GB // 2}\n")
    assert limits(root)["the control group a"].most_bytes == 3 * GB + GB // 2
    (root / f"{V2}/a/memory.swap.max").write_text("0\n")
    assert limits(root)["the control group a"].most_bytes == 3 * GB


def test_swap_of_version_1_is_counted_with_memory(tmp_path: Path) -> None:
    files: dict[str, int | str] = {
        f"{V1}/a/memory.limit_in_bytes": 2 * GB,
        f"{V1}/a/memory.usage_in_bytes": GB,
        f"{V1}/a/memory.memsw.limit_in_bytes": 3 * GB,
        f"{V1}/a/memory.memsw.usage_in_bytes": GB + GB // 4,
        f"{V1}/a/memory.stat": f"total_inactive_file {GB // 8}\ntotal_active_file {GB // 8}\nactive_file 1\n",
    }
    found = limits(system(tmp_path, "5:memory:/a\n", files, TIGHT))["the control group a"]
    assert found.left_bytes == GB + GB // 8
    assert found.most_bytes == GB + GB // 4 + (GB - GB // 4)


def test_a_group_that_is_only_slowed_down_ends_nobody(tmp_path: Path) -> None:
    files: dict[str, int | str] = {f"{V2}/a/memory.high": GB, f"{V2}/a/memory.current": 0}
    root = system(tmp_path, "0::/a\n", files)
    assert (limits(root)["the control group a"].left_bytes, limits(root)["the control group a"].most_bytes) == (
        GB,
        NEVER,
    )


def test_all_groups_around_a_process_are_told(tmp_path: Path) -> None:
    files: dict[str, int | str] = {}
    for depth, name in enumerate(("a", "a/b", "a/b/c")):
        files |= {f"{V2}/{name}/memory.max": (4 - depth) * GB, f"{V2}/{name}/memory.current": GB // 2}
    found = [limit.total_bytes for limit in memory_limits(system(tmp_path, "0::/a/b/c\n", files))[1:]]
    assert found == [2 * GB, 3 * GB, 4 * GB]


def test_ulimit_counts_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = system(tmp_path, "", {"proc/self/status": "VmSize:\t 1048576 kB\nVmData:\t 524288 kB"})
    assert list(limits(root)) == ["this machine"]
    given = {resource.RLIMIT_AS: 3 * GB, resource.RLIMIT_DATA: 2 * GB}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (given[which], resource.RLIM_INFINITY))
    found = limits(root)
    assert found["ulimit -v"] == MemoryLimit("ulimit -v", 3 * GB, 2 * GB, 2 * GB, addresses=True)
    assert found["ulimit -d"] == MemoryLimit("ulimit -d", 2 * GB, GB + GB // 2, GB + GB // 2, addresses=True)
    (root / "proc/self/status").unlink()
    assert list(limits(root)) == ["this machine"]
    monkeypatch.setitem(sys.modules, "resource", None)
    assert list(process_limits.rlimits(root)) == []


def test_a_real_ulimit_is_seen() -> None:
    code = "from edge.runtime.machine import available_bytes; print(available_bytes())"
    limited = f"ulimit -v {2 * GB // KB}; exec {sys.executable} -c '{code}'"
    said = subprocess.run(["sh", "-c", limited], capture_output=True, text=True, check=True).stdout
    assert GB < int(said) < 2 * GB


class Job:
    """kernel32 with a job whose limits are these."""

    def __init__(self, flags: int, process: int, job: int) -> None:
        self._found = (flags, process, job)

    def QueryInformationJobObject(self, job: None, kind: int, place: Any, size: int, _: None) -> int:
        assert (job, kind, size) == (None, 9, ctypes.sizeof(JobLimits))
        found = place._obj
        found.basic.flags, found.process_memory, found.job_memory = self._found
        return int(self._found[0] != 0)


def test_a_job_of_windows_has_limits() -> None:
    """Its layout is that of Windows on 64 bits: 144 bytes, the first limit at 112."""
    assert ctypes.sizeof(JobLimits) == 144
    assert (JobLimits.process_memory.offset, JobLimits.job_memory.offset) == (112, 120)

    def found(flags: int) -> list[tuple[int, int]]:
        return [(limit.limit_bytes, limit.used_bytes) for limit in job_limits(5, Job(flags, GB, 2 * GB))]

    assert found(0x100) == [(GB, 5)]
    assert found(0x200) == [(2 * GB, 5)]
    assert found(0x300) == [(GB, 5), (2 * GB, 5)]
    assert found(0x1) == found(0) == []
    assert list(job_limits(5)) == []  # this is no Windows


def test_what_cannot_be_dropped_is_less_than_what_is_resident(tmp_path: Path) -> None:
    before = anonymous_bytes()
    assert before is not None
    held = bytearray(b"x") * (64 << 20)
    during, resident = anonymous_bytes(), rss_bytes()
    assert during is not None
    assert resident is not None
    assert before + len(held) - (8 << 20) < during <= resident
