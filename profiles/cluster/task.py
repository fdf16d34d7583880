"""What runs on a node of a cluster: a look at the node, and a step in a process of its own, as on one machine.

In: what the sweep needs of a node, and a task. Out: facts, and a `Report`. Knows nothing about Ray and about sweeps.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.profiles.cluster.pool import Facts, Report
from edge.profiles.machine_record import machine_record, versions_record
from edge.profiles.processes import run_step
from edge.runtime.cores import own_cores
from edge.runtime.errors import ProfileError, SettingsError

_BOOT = Path("/proc/sys/kernel/random/boot_id")
# Ray sets it for each of its workers, to the CPUs of the task; numpy's and NNCF's results may depend on it.
OWN_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a node needs to take part in a sweep."""

    versions: Mapping[str, str]  # of packages, as on the machine that the sweep is run from
    files: Mapping[str, int]  # path -> bytes: what is read
    mark: str  # the path of a file in the folder for results
    mark_text: str  # its content, which no other file has
    own_threads: str | None  # OWN_THREADS on the machine that the sweep is run from


def look(node_id: str, wanted: Wanted) -> Facts:
    """What this node is, and why it cannot take part, if it cannot."""
    return Facts(node_id, machine_record(), boot_id(), _unfit(wanted))


def _unfit(wanted: Wanted) -> str:
    found = versions_record()
    for name in sorted(wanted.versions.keys() | found.keys()):
        if (here := found.get(name)) != (there := wanted.versions.get(name)):
            return f"it has {name} {here or '(none)'}, the machine of the sweep {there or 'none'}; install the same"
    mark = Path(wanted.mark)
    if _text(mark) != wanted.mark_text:
        return f"it does not see {mark.parent}; results need a folder that all nodes share under one path"
    try:
        probe = mark.with_name(f"{mark.name}.{os.getpid()}")
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"it cannot write into {mark.parent} ({error.strerror}); allow it"
    for path, size in wanted.files.items():
        if _size(Path(path)) != size:
            return f"it does not see {path} as the machine of the sweep does; share it under the same path"
    return ""


def boot_id() -> str:
    """What tells this machine from others, whatever containers run on it; the host's name where it is not known."""
    return _text(_BOOT).strip() or platform.node()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def run_here(
    node_id: str,
    wanted: Wanted,
    task: Mapping[str, Any],  # JSON
    cores: int | None,
    tell: Callable[[str, int, int], None],
) -> Report:
    """Run a step in a process of its own. Its end is also that of the step, however this process ends."""
    facts = look(node_id, wanted)
    if facts.unfit:
        return Report(facts, error=f"the node cannot take part: {facts.unfit}")
    os.environ.pop(OWN_THREADS, None)
    if wanted.own_threads is not None:
        os.environ[OWN_THREADS] = wanted.own_threads
    try:
        with own_cores(cores):
            return Report(facts, run_step(task, tell))
    except (ProfileError, SettingsError) as error:
        return Report(facts, error=str(error))
