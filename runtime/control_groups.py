"""What Linux's control groups leave a process: the limits of its own group, and of every group around it.

In: the root folder of /proc and /sys. Out: one `GroupLimit` for each limit on memory. Knows nothing about limits that
are set elsewhere. A container, a service of systemd, and the slices that services are in, are such groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class GroupLimit:
    """A limit on the memory of a group, and what is used of it."""

    name: str  # "the container", or the group's name as systemd has it
    limit_bytes: int
    used_bytes: int  # without pages of files that the system drops first
    file_bytes: int  # of those used, pages of files that it can drop as well
    swap_bytes: int | None  # that the group may still move to swap; None for no limit of its own
    kills: bool  # beyond memory.max, a process is ended; beyond memory.high, it is slowed down to a crawl


@dataclass(frozen=True, slots=True)
class _Kind:
    """One version of control groups: where it is mounted, and its files."""

    unified: bool  # version 2, whose line in /proc/self/cgroup names no controllers
    mount: str
    limits: tuple[tuple[str, bool], ...]  # file -> whether a process is ended beyond it
    used: str
    stat_prefix: str  # of lines of memory.stat that count the groups inside, too
    swap_limit: str
    swap_used: str
    swap_includes_memory: bool


_V2 = (
    (("memory.max", True), ("memory.high", False)),
    "memory.current",
    "",
    "memory.swap.max",
    "memory.swap.current",
    False,
)
_V1 = (
    (("memory.limit_in_bytes", True),),
    "memory.usage_in_bytes",
    "total_",
    "memory.memsw.limit_in_bytes",
    "memory.memsw.usage_in_bytes",
    True,
)
_KINDS = (
    _Kind(True, "sys/fs/cgroup", *_V2),
    _Kind(True, "sys/fs/cgroup/unified", *_V2),  # beside version 1
    _Kind(False, "sys/fs/cgroup/memory", *_V1),
)
_NO_LIMIT = 1 << 60  # version 1 says 2^63 less a page
_OF_CONTAINERS = ("docker", "libpod", "kubepods", "lxc", "crio", "cri-containerd", "garden", "ecs")


def group_limits(root: Path) -> Iterator[GroupLimit]:
    """Yield the memory limits of this process's control group and of its parents."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if controllers == "" or "memory" in controllers.split(","):
            for kind in _KINDS:
                if kind.unified == (controllers == ""):
                    yield from _along(root / kind.mount, path, kind)


def number_in(path: Path, field: str = "") -> int | None:
    """Return the number after a field's name, or at the beginning of a file; None if there is none ("max")."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    words = next((line[len(field) :].split() for line in lines if line.startswith(field)), [])
    return int(words[0]) if words and words[0].isdigit() else None


def _along(mount: Path, path: str, kind: _Kind) -> Iterator[GroupLimit]:
    """Go from the process's group up to the mounted one. A container sees only that one, and paths outside of it."""
    names = [name for name in path.split("/") if name not in ("", "..")]
    for depth in range(len(names), -1, -1):
        folder = mount.joinpath(*names[:depth])
        used = number_in(folder / kind.used)
        if used is None:
            continue
        for file, kills in kind.limits:
            limit = number_in(folder / file)
            if limit is not None and limit < _NO_LIMIT:
                stat, prefix = folder / "memory.stat", kind.stat_prefix
                dropped_first = number_in(stat, f"{prefix}inactive_file ") or 0
                yield GroupLimit(
                    name=_name(names[:depth]),
                    limit_bytes=limit,
                    used_bytes=max(used - dropped_first, 0),
                    file_bytes=number_in(stat, f"{prefix}active_file ") or 0,
                    swap_bytes=_swap_left(folder, kind, limit, used),
                    kills=kills,
                )


def _swap_left(folder: Path, kind: _Kind, limit: int, used: int) -> int | None:
    swap, swapped = number_in(folder / kind.swap_limit), number_in(folder / kind.swap_used) or 0
    if swap is None or swap >= _NO_LIMIT:
        return None
    return max(swap - swapped - ((limit - used) if kind.swap_includes_memory else 0), 0)


def _name(names: list[str]) -> str:
    """What a user knows a group by. A container sees its own group as the mounted one, whatever its path says."""
    if not names or names[-1].startswith(_OF_CONTAINERS) or any(name.startswith(_OF_CONTAINERS) for name in names[:-1]):
        return "the container"
    return f"the control group {names[-1]}"
