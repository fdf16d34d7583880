"""The executor of a sweep on a Ray cluster: joined, its nodes looked at, left at the end.

In: a plan, an address. Out: an executor. The checkpoint and the folder for results have to be where every node sees
them under the same path, and every node needs the packages of this machine: both are looked at before any work.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.profiles.cluster.executor import ClusterSteps
from edge.profiles.cluster.task import OWN_THREADS, Wanted, boot_id
from edge.profiles.machine_record import machine_record, versions_record
from edge.profiles.sweep_memory import step_bytes
from edge.profiles.sweep_plan import SweepPlan
from edge.profiles.sweep_steps import Executor
from edge.runtime.cluster import joined
from edge.runtime.errors import SettingsError

MARK = ".edgeglm-nodes"  # a file in the folder for results, by which nodes tell that they share it


@contextmanager
def cluster_executor(plan: SweepPlan, address: str) -> Iterator[Executor]:
    """Join a cluster for a sweep. Raises ClusterError, SettingsError and MissingPackageError."""
    if not Path(plan.source).exists():
        raise SettingsError(
            f"{plan.source} is no path, and nodes of a cluster download nothing; download it to a folder that all of "
            "them share"
        )
    mark = plan.out.absolute() / MARK
    text = secrets.token_hex(32)
    machine = machine_record()
    wanted = Wanted(versions_record(), _files(plan), str(mark), text, os.environ.get(OWN_THREADS))
    mark.write_text(text)
    try:
        with joined(address) as cluster:
            from edge.profiles.cluster.ray_pool import RayPool

            executor = ClusterSteps(
                RayPool(wanted),
                machine,
                boot_id(),
                plan.settings.threads or machine["cores"],
                lambda step: step_bytes(plan, step),
                cluster.is_left,
            )
            with executor:
                executor.check()
                yield executor
    finally:
        mark.unlink(missing_ok=True)


def _files(plan: SweepPlan) -> dict[str, int]:
    """What the nodes read, with sizes."""
    paths = {path.absolute() for one in plan.plans.values() for path in one.source_files}
    if plan.settings.calibration is not None:
        paths.add(plan.settings.calibration.absolute())
    return {str(path): path.stat().st_size for path in sorted(paths)}
