"""The front of a model on replicas: what `edge serve` and an ingress of Serve have in common.

In: settings, a bundle's place, and what opens it on a replica. Out: a service whose model is on the cluster. Knows
nothing about sockets.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ray import serve
from ray.serve.handle import DeploymentHandle

from edge.runtime.bundle import open_bundle
from edge.runtime.errors import ClusterError
from edge.runtime.llm import LLM
from edge.server.metrics import Metrics
from edge.server.ray.bundles import BundleSource, sha256_of_manifest
from edge.server.ray.deploying import cpus_of_nodes, processors_for, replicas_of, started
from edge.server.ray.model import FarLLM
from edge.server.ray.replica import Opening
from edge.server.ray.running import FarRunner, Refuse
from edge.server.ray.settings import RaySettings
from edge.server.ray.states import States
from edge.server.service import Service, Stage
from edge.server.settings import ServerSettings

KNOWN_S = 60.0  # for the first of replicas that are ready to tell of its engine
_FORGET_S = 30.0

logger = logging.getLogger(__name__)


class Front:
    """What a front holds of the cluster, from `open` to `release`."""

    refuse: Refuse  # what is told where all replicas are full

    def __init__(self, settings: RaySettings, metrics: Metrics, chat_template: str | None) -> None:
        self._settings, self._metrics, self._chat_template = settings, metrics, chat_template
        self._leaving = ExitStack()

    def open_deployed(
        self,
        server: ServerSettings,
        source: BundleSource,
        opening: Opening,
        threads: int | None,
        stage: Stage,
    ) -> FarLLM:
        """Start replicas on the cluster, and return the model. They end with it. Raises ClusterError."""
        try:
            each = threads or processors_for(self._settings.replicas, cpus_of_nodes())
            application = replicas_of(self._settings, server, source, opening, each)
            name = self._settings.name
            self._leaving.callback(serve.delete, name)
            handle = started(application, name, lambda what, done: stage(what, 0.1 + 0.8 * done))
            return self.open(handle, source)
        except BaseException:
            self.release()
            raise

    def open(
        self, handle: DeploymentHandle[object], source: BundleSource, starting: Callable[[], bool] = lambda: False
    ) -> FarLLM:
        """Return the model of replicas that are there, or are starting. Raises ClusterError if none tells of itself."""
        bundle = open_bundle(source.here())
        model, states = sha256_of_manifest(bundle.path), States(handle)
        runner = FarRunner(handle, model, self.refuse, states.stats)
        following = asyncio.run_coroutine_threadsafe(states.follow(), runner.loop)
        state = states.first_of(model, KNOWN_S, starting)
        if state is None:
            following.cancel()
            raise ClusterError(f"no replica has the bundle of {source.path}; is it the same one on all nodes?")
        self._metrics.also(states.families)

        def release() -> None:
            following.cancel()
            self.release()

        def forget() -> None:
            handle.broadcast("forget").results(timeout_s=_FORGET_S, return_exceptions=True)

        template = None if self._chat_template is None else Path(self._chat_template)
        return FarLLM(
            bundle,
            state,
            runner,
            resumes=self._settings.resume_streams,
            by_prefix=self._settings.by_prefix,
            forget=forget,
            release=release,
            chat_template=template,
        )

    def release(self) -> None:
        """End what was started on the cluster."""
        self._leaving.close()


class FarService(Service):
    """A service whose replicas decide for themselves whether they have room."""

    def __init__(self, open_model: Callable[[Stage], LLM], settings: ServerSettings, front: Front) -> None:
        """open_model: opens it with the front."""
        super().__init__(open_model, settings)
        self._front = front
        front.refuse = self.queue_full

    def abandon(self) -> None:
        """End what was started on the cluster."""
        self._front.release()

    def check_room(self, llm: LLM) -> None:
        """Let everyone in: `LLM.chat` and `LLM.generate` raise the error where all replicas refuse."""

    def for_reading(self, llm: LLM, *, whole: bool) -> LLM:
        """Return the model for an answer that is told at its end, or as it comes."""
        return llm.read_whole() if whole and isinstance(llm, FarLLM) else llm
