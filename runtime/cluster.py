"""A Ray cluster for as long as it is needed: joined at an address, or started on this machine.

In: an address. Out: a context in which this process is the cluster's driver. Knows nothing about what runs
there. Ray is imported here, and by what runs on it; nothing else needs it.

Ray's head reports usage to its makers' server unless RAY_USAGE_STATS_ENABLED is 0 where it starts
(ray/_common/usage/usage_lib.py at 2.60.0; workers and other nodes never report). It is 0 in all that is started here. A
cluster that others have started is beyond that, so a warning says how to start one that does not report.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edge.runtime.errors import ClusterError, shown, telling_line
from edge.runtime.extras import check_installed

SILENT = {"RAY_USAGE_STATS_ENABLED": "0"}
FOUND = "auto"  # the cluster that runs on this machine, or that RAY_ADDRESS names
OWN = "local"  # a cluster of this machine alone, in Ray's word for it, also where RAY_ADDRESS names another
_CONNECT_S = 10.0
_HOW = "`ray start --head` starts one, and `ray status` shows whether it runs"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that this process is a driver of."""

    address: str  # of its head, host:port
    is_own: bool  # whether it was started here, and ends here
    is_left: bool  # whether this process leaves it at the end, which ends what it runs there


@contextmanager
def joined(address: str, *, num_cpus: int | None = None, object_store_bytes: int | None = None) -> Iterator[Cluster]:
    """Join the cluster at an address ("host:port", or FOUND), and leave it at the end.

    OWN: start a cluster of this machine alone, and end it. It listens on all addresses, as Ray does, but answers only
    who has this user's token (~/.ray/auth_token). num_cpus, object_store_bytes: what such a cluster has (default: all
    CPUs, and as much as Ray takes). A process that is in a cluster already stays in it. To be called in the main
    thread: in another, Ray's own handlers of signals would stay. Raises ClusterError and MissingPackageError.
    """
    check_installed("ray", needed="ray")
    if address not in (OWN, FOUND):
        _check_reachable(address)
    import ray

    os.environ.update(SILENT)
    if ray.is_initialized():
        yield Cluster(_address(), is_own=False, is_left=False)
        return
    heard = signal.getsignal(signal.SIGTERM)
    try:
        if address == OWN:
            ray.init(
                OWN,
                num_cpus=num_cpus,
                object_store_memory=object_store_bytes,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        else:
            ray.init(
                address,
                log_to_driver=False,
                logging_level=logging.WARNING,
                runtime_env={"env_vars": SILENT},
            )
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        ray.shutdown()
        what = "started on this machine" if address == OWN else f"joined at {address}"
        raise ClusterError(f"a Ray cluster cannot be {what} ({telling_line(error, last=True)}); {_HOW}") from error
    finally:
        if threading.current_thread() is threading.main_thread():  # Ray has put a handler of its own there
            signal.signal(signal.SIGTERM, heard)
    try:
        if address != OWN:
            _say_if_it_reports(address)
        yield Cluster(_address(), is_own=address == OWN, is_left=True)
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise ClusterError if nothing listens there: Ray would try for minutes, and not be interrupted."""
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdigit():
        raise ClusterError(
            f"the address of the Ray cluster is {shown(address)}, expected that of its head, like 192.168.1.5:6379, or "
            f"{FOUND} for the cluster of this machine"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ClusterError(f"no Ray cluster answers at {address} ({telling_line(error)}); {_HOW}") from error


def _address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _say_if_it_reports(address: str) -> None:
    """Warn if the head's process reports: its note on the cluster has the time of its start only then."""
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray.experimental.internal_kv import _internal_kv_get

    noted = json.loads(_internal_kv_get(CLUSTER_METADATA_KEY, namespace="cluster") or b"{}")
    if "session_start_timestamp_ms" in noted:
        logger.warning(
            "the head of the Ray cluster at %s may report usage statistics to Ray's makers; start it with "
            "`ray start --head --disable-usage-stats`",
            address,
        )
