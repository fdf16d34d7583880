"""Replicas on a cluster: how many processors each gets, started and waited for.

In: settings, a bundle's place, and what opens it. Out: a handle to ready replicas. Knows nothing about HTTP.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, LoggingConfig

from edge.runtime.cluster import SILENT
from edge.runtime.errors import ClusterError
from edge.runtime.machine import physical_cores
from edge.server.ray.bundles import BundleSource
from edge.server.ray.replica import Opening, Replica
from edge.server.ray.settings import RaySettings
from edge.server.settings import ServerSettings

REPLICAS = "Replica"  # the deployment's name
ROUTER = "edge.server.ray.router:PrefixRouter"
ANSWERS = 100_000  # that a replica may have at once, as Serve sees it: the replica's own queue is the limit
DRAIN_S = 600.0  # for the answers of a replica that is being replaced
_HEALTH_S, _HEALTH_TIMEOUT_S = 5.0, 30.0
_TRIES = 3  # to start a replica, before starting counts as failed
_ASK_S = 0.2
_STARTING = ("UPDATING", "UPSCALING")  # as Serve has the status of a deployment
_ERROR = re.compile(r"^(?:\x1b\[\d+m)*(?:edge\.runtime\.errors\.)?\w+Error: (.*)$", re.MULTILINE)

Told = Callable[[str, float], None]  # what is being done, and which share of it is

logger = logging.getLogger(__name__)


def processors_for(replicas: int, cpus: Sequence[float]) -> int:
    """Return how many processors each of several replicas gets on nodes with these. Raises ClusterError."""
    for each in range(int(max(cpus, default=0)), 0, -1):
        if sum(int(count) // each for count in cpus) >= replicas:
            return each
    raise ClusterError(
        f"{replicas} replicas need a processor each, and the cluster has {sum(map(int, cpus))}; ask for fewer, or add "
        "nodes with `ray start --address=HEAD`"
    )


def threads_on(processors: int, asked: int | None) -> int:
    """Return how many threads compute in a replica that is kept to processors: one a core unless told otherwise."""
    return asked or min(processors, physical_cores() or processors)


def cpus_of_nodes() -> list[float]:
    """Return the processors of each node of the cluster that this process is in."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"]]


def replicas_of(
    settings: RaySettings, server: ServerSettings, source: BundleSource, opening: Opening, processors: int
) -> Application:
    """Return the replicas as Serve takes them. processors: of each."""
    deployment = serve.deployment(Replica).options(  # type: ignore[attr-defined]  # a decorator of several forms
        name=REPLICAS,
        num_replicas=settings.replicas,
        max_ongoing_requests=ANSWERS,
        ray_actor_options={"num_cpus": processors, "runtime_env": {"env_vars": SILENT}},
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=_HEALTH_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        max_constructor_retry_count=_TRIES,
        request_router_config=RequestRouterConfig.model_validate({"request_router_class": ROUTER}),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    bound: Application = deployment.bind(source, opening, processors, server.max_waiting, server.stall_s)
    return bound


def started(application: Application, name: str, told: Told) -> DeploymentHandle[object]:
    """Start replicas without a proxy of Serve's own, and wait until they are ready. Raises ClusterError."""
    serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="WARNING"))
    (handle,) = serve.run_many(
        [serve.RunTarget(application, name=name, route_prefix=None)], wait_for_applications_running=False
    )
    while True:
        found = serve.status().applications.get(name)
        if found is not None:
            ready = sum(
                count
                for deployment in found.deployments.values()
                for state, count in deployment.replica_states.items()
                if state == "RUNNING"
            )
            if found.status == ApplicationStatus.RUNNING:
                told("ready", 1.0)
                return handle
            if found.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                said = " ".join([found.message, *(one.message for one in found.deployments.values())])
                raise ClusterError(f"the replicas did not start: {_reason(said)}")
            told(f"starting replicas, {ready} are ready", 0.1)
        time.sleep(_ASK_S)


def still_starting(application: str) -> bool:
    """Return whether Serve is still starting replicas of an application, or replacing them."""
    found = serve.status().applications.get(application)
    deployment = None if found is None else found.deployments.get(REPLICAS)
    return deployment is not None and deployment.status in _STARTING


def _reason(said: str) -> str:
    """Return the last error of ours in what Serve tells, which quotes tracebacks; else the end of it."""
    found = _ERROR.findall(said)
    return found[-1] if found else said.strip()[-300:]
