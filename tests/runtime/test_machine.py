"""Memory that may be taken is what the machine has free, and what every control group around this process leaves.

The system's files are made, as Linux writes them: version 2 of control groups, version 1, both at once, containers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from edge.runtime import machine
from edge.runtime.engines.limits import cache_budget
from edge.runtime.errors import SettingsError
from edge.runtime.machine import available_bytes
from edge.runtime.settings import EngineSettings

MEMINFO = "MemTotal:       32000000 kB\nMemFree:         1000000 kB\nMemAvailable:   16000000 kB\n"
FREE = 16_000_000 * 1024
GB = 1 << 30
NO_LIMIT_V1 = 9223372036854771712
V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


def system(root: Path, cgroup: str, files: Mapping[str, int | str], meminfo: str | None = MEMINFO) -> Path:
    """A root folder with /proc and /sys."""
    (root / "proc/self").mkdir(parents=True)
    if meminfo is not None:
        (root / "proc/meminfo").write_text(meminfo)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def test_without_groups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert available_bytes(system(tmp_path, "", {})) == FREE


@pytest.mark.parametrize("meminfo", [None, "", "MemTotal: 5 kB\n", "MemAvailable:\n", "MemAvailable: many kB\n"])
def test_what_linux_does_not_tell_psutil_does(
    tmp_path: Path, meminfo: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what nobody tells is not known, but for the limits of groups."""
    root = system(tmp_path, "0::/a\n", {f"{V2}/a/memory.current": 0}, meminfo)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5 * GB, total=8 * GB))
    assert available_bytes(root) == available_bytes(tmp_path / "elsewhere") == 5 * GB
    (root / f"{V2}/a/memory.max").write_text(str(GB))
    assert available_bytes(root) == GB
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert available_bytes(root) == GB
    assert available_bytes(tmp_path / "elsewhere") is None


def test_a_share_of_what_is_not_known_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a share of 2^62 bytes, which the system refused."""
    monkeypatch.setattr("edge.runtime.engines.limits.available_bytes", lambda: None)
    assert cache_budget(EngineSettings(kv_cache_bytes=GB)) == GB
    with pytest.raises(SettingsError, match=r"kv_cache_share is 0\.5, but .*; set kv_cache_bytes instead") as refused:
        cache_budget(EngineSettings(kv_cache_share=0.5))
    assert refused.value.param == "kv_cache_share"


@pytest.mark.parametrize(("cores", "allowed", "found"), [(4, 8, 4), (4, 2, 2), (None, 8, None)])
def test_cores_where_there_is_no_affinity_of_linux(
    cores: int | None, allowed: int, found: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None if logical else cores)
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda _self: list(range(allowed)))
    assert machine.physical_cores() == found
    monkeypatch.delattr(psutil.Process, "cpu_affinity")  # macOS
    assert machine.physical_cores() == cores
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert machine.physical_cores() is None


def test_sizes_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither `resource` nor os.sysconf; what psutil says is near what Linux says."""
    rss, total = machine.rss_bytes(), machine.total_bytes()
    assert rss is not None
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setitem(sys.modules, "resource", None)
    found = machine.rss_bytes()
    assert found is not None
    assert abs(found - rss) < 50e6
    assert machine.total_bytes() == total
    memory = SimpleNamespace(rss=5, peak_wset=7)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _self: memory)
    assert (machine.rss_bytes(), machine.peak_rss_bytes()) == (5, 7)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert (machine.rss_bytes(), machine.peak_rss_bytes(), machine.total_bytes()) == (None, None, None)


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        # A service of systemd with a limit of its own.
        ("0::/system.slice/edge.service\n",
         {f"{V2}/system.slice/edge.service/memory.max": 4 * GB,
          f"{V2}/system.slice/edge.service/memory.current": 1 * GB}, 3 * GB),
        # What is cached of files goes first when memory is wanted.
        ("0::/a\n",
         {f"{V2}/a/memory.max": 4 * GB, f"{V2}/a/memory.current": 3 * GB,
          f"{V2}/a/memory.stat": f"anon {GB}\nfile {2 * GB}\ninactive_file {2 * GB}\nactive_file 5"}, 3 * GB),
        # memory.high slows a group down where memory.max would kill.
        ("0::/a\n",
         {f"{V2}/a/memory.max": "max", f"{V2}/a/memory.high": 2 * GB, f"{V2}/a/memory.current": GB}, GB),
        # The group around it has less left.
        ("0::/a/b/c\n",
         {f"{V2}/a/b/c/memory.max": "max", f"{V2}/a/b/c/memory.current": 5,
          f"{V2}/a/memory.max": 2 * GB, f"{V2}/a/memory.current": GB}, GB),
        # A container sees its own group as the root.
        ("0::/\n", {f"{V2}/memory.max": 1 * GB, f"{V2}/memory.current": GB // 4}, GB - GB // 4),
        ("0::/../../b\n", {f"{V2}/memory.max": 1 * GB, f"{V2}/memory.current": 0}, GB),
        # More is used than allowed: nothing is left.
        ("0::/a\n", {f"{V2}/a/memory.max": GB, f"{V2}/a/memory.current": 2 * GB}, 0),
        ("0::/a\n", {f"{V2}/a/memory.max": 64 * GB, f"{V2}/a/memory.current": 5}, FREE),
        # Version 1, whose paths a container may not see.
        ("5:memory:/docker/abc\n1:cpu:/x\n0::/\n",
         {f"{V1}/memory.limit_in_bytes": GB, f"{V1}/memory.usage_in_bytes": GB // 2,
          f"{V1}/memory.stat": f"inactive_file 7\ntotal_inactive_file {GB // 4}"}, GB - GB // 4),
        ("5:cpu,memory:/a\n",
         {f"{V1}/a/memory.limit_in_bytes": 2 * GB, f"{V1}/a/memory.usage_in_bytes": GB,
          f"{V1}/memory.limit_in_bytes": NO_LIMIT_V1, f"{V1}/memory.usage_in_bytes": 9 * GB}, GB),
        # Version 2 beside version 1.
        ("1:name=systemd:/\n0::/a\n",
         {f"{V2}/unified/a/memory.max": GB, f"{V2}/unified/a/memory.current": 1}, GB - 1),
        # What is no line and no number says nothing.
        ("nonsense\n0::/a\n", {f"{V2}/a/memory.max": "-5", f"{V2}/a/memory.current": "1e9"}, FREE),
    ],
)  # fmt: skip
def test_a_group_leaves_less(tmp_path: Path, cgroup: str, files: dict[str, int | str], expected: int) -> None:
    assert available_bytes(system(tmp_path, cgroup, files)) == expected


def test_the_cache_gets_a_share_of_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container of 1 GB on a large machine, it was half of the machine's."""
    root = system(tmp_path, "0::/\n", {f"{V2}/memory.max": GB, f"{V2}/memory.current": 0})
    monkeypatch.setattr("edge.runtime.engines.limits.available_bytes", lambda: available_bytes(root))
    assert cache_budget(EngineSettings(kv_cache_share=0.5)) == GB // 2
    assert cache_budget(EngineSettings()) == GB


def test_this_machine_has_memory_and_processors() -> None:
    free, total = available_bytes(), machine.total_bytes()
    assert free is not None
    assert total is not None
    assert 0 < free <= total
    assert machine.logical_processors() >= 1
