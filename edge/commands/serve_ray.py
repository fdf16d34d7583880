"""`edge serve --ray`: the same server, whose model is computed by replicas on a cluster.

In: the arguments of `edge serve`. Out: a service. What a replica loads is what those arguments say.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge.commands import reuse
from edge.commands.sampling import say_sampling

if TYPE_CHECKING:
    from edge.runtime.llm import LLM
    from edge.server.metrics import Metrics
    from edge.server.service import Service, Stage
    from edge.server.settings import ServerSettings


@contextmanager
def far_service(args: argparse.Namespace, settings: ServerSettings, metrics: Metrics) -> Iterator[Service]:
    """Join the cluster for as long as a service is used, which is ready once its replicas are.

    Raises ClusterError, SettingsError and MissingPackageError.
    """
    from edge.runtime.cluster import joined
    from edge.runtime.errors import SettingsError
    from edge.runtime.extras import check_installed

    check_installed("ray", needed="ray")
    if args.draft_store is not None or args.draft_from:
        raise SettingsError("--draft-store is written by one process, and replicas are several; leave it out")

    from edge.server.ray.bundles import fetchable
    from edge.server.ray.front import FarService, Front
    from edge.server.ray.settings import RaySettings

    given = {} if args.replicas is None else {"replicas": args.replicas}
    where = settings.uds or settings.port or f"0 {os.getpid()}"  # two servers with ports of the system's choice are two
    name = f"edge {settings.names[0]} {platform.node()} {where}"
    far = RaySettings(**given, resume_streams=args.resume_streams, name=name)
    there = _as_elsewhere(args)
    opening = partial(_opened_there, there)

    front = Front(far, metrics, there.chat_template)

    def opened(stage: Stage) -> LLM:
        source = fetchable(there.bundle, args.fetch)
        llm = front.open_deployed(settings, source, opening, args.threads, stage)
        info = llm.engine.info
        print(f"ready: {far.replicas} replicas, {info.name} on {info.device}", flush=True)
        say_sampling(llm, {"sampling": args.sampling})
        return llm

    with joined(args.ray):
        service = FarService(opened, settings, front)
        yield service


def _as_elsewhere(args: argparse.Namespace) -> argparse.Namespace:
    """Return arguments that mean the same in another folder: whole paths, and texts in place of their files."""
    from edge.models.find import find_bundle

    reuse.given_system(args)
    there = argparse.Namespace(**vars(args))
    there.bundle = str(find_bundle(args.bundle).absolute())
    there.prefix = [str(Path(prefix).absolute()) for prefix in args.prefix]
    for name in ("chat_template", "draft", "compiled_folder"):
        if (value := getattr(args, name)) is not None:
            setattr(there, name, str(Path(value).absolute()))
    return there


def _opened_there(args: argparse.Namespace, bundle: str, processors: int) -> LLM:
    """Load the model on a replica."""
    from edge.commands.serve import loaded
    from edge.server.ray.deploying import threads_on

    args.bundle, args.threads = bundle, threads_on(processors, args.threads)
    return loaded(args, lambda _stage, _share: None)
