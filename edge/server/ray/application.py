"""The application for `serve run edge.server.ray:app`: an ingress and replicas, both run by Serve.

In: arguments as Serve has them, from a command line or a config file. Out: a Serve application. Knows nothing about
how a request is answered.

    serve run edge.server.ray:app bundle=/models/glm4-int4 replicas=2 threads=4

An ingress is the whole server but for its sockets, which are those of Serve's proxies. Its keys and texts are read from
files where it runs, so that no key is in the cluster's memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp, Receive, Scope, Send

from edge.api import load
from edge.runtime.errors import SettingsError, shown
from edge.runtime.llm import LLM
from edge.runtime.settings import ENGINE_NAMES, engine_settings
from edge.server.app import make_app
from edge.server.keys import check_keys, read_keys
from edge.server.metrics import Metrics
from edge.server.page_config import PageConfig
from edge.server.ray.bundles import BundleSource, source_of
from edge.server.ray.deploying import DRAIN_S, cpus_of_nodes, processors_for, replicas_of, still_starting, threads_on
from edge.server.ray.front import FarService, Front
from edge.server.ray.settings import RaySettings
from edge.server.settings import ServerSettings
from edge.server.warm_up import make_ready

_OF_PROXIES = {
    "host",
    "port",
    "uds",
    "max_connections",
    "header_timeout_s",
}  # which Serve's proxies have in place of us
_SERVER = {spec.name for spec in fields(ServerSettings)} - {"keys"} - _OF_PROXIES
_RAY = {spec.name for spec in fields(RaySettings)} - {"name"}
_TUPLES = {"names", "allowed_hosts", "cors_origins", "prefix"}


@dataclass(frozen=True, slots=True)
class Load:
    """What a replica opens, beside the bundle."""

    options: dict[str, Any] = field(default_factory=dict)  # Any: keywords of `edge.load`
    prefixes: tuple[str, ...] = ()
    system: str | None = None


def app(args: Mapping[str, Any]) -> Application:  # Any: of a config file
    """Return the application. Raises SettingsError for an argument that is unknown or wrong.

    args: `bundle`; the fields of `RaySettings` and `ServerSettings` but those of sockets; keywords of `edge.load`;
    `fetch`, `sha256`, `prefix`, `system_file` and `api_key_file`.
    """
    given = {name: _typed(name, value) for name, value in args.items()}
    own = {
        name: given.pop(name, None) for name in ("bundle", "system_file", "api_key_file", "prefix", "fetch", "sha256")
    }
    if not own["bundle"]:
        raise SettingsError("bundle is missing; give the path of the bundle's folder, as bundle=/models/glm4-int4")
    if own["fetch"] is not None and own["sha256"] is None:
        raise SettingsError("fetch needs sha256, that of the bundle's manifest.json, to know what is fetched")
    if own["fetch"] is not None:
        source_of(own["fetch"], None)  # refused before anything is started
    far = RaySettings(**{name: given.pop(name) for name in _RAY & given.keys()})
    server = ServerSettings(**{name: given.pop(name) for name in _SERVER & given.keys()})
    folder = str(own["bundle"])
    server = replace(server, names=tuple(dict.fromkeys([*server.names, Path(folder).name, folder])))
    options = {name: given.pop(name) for name in (ENGINE_NAMES | {"speculation", "chat_template"}) & given.keys()}
    if given:
        raise SettingsError(f"{shown(sorted(given)[0])} is no argument of this application")
    engine_settings(**{name: value for name, value in options.items() if name in ENGINE_NAMES})
    processors = options.get("threads") or processors_for(far.replicas, cpus_of_nodes())
    system = None if own["system_file"] is None else Path(own["system_file"]).read_text(encoding="utf-8")
    wanted = Load(options, own["prefix"] or (), system)
    source = BundleSource(folder, own["fetch"], own["sha256"])
    replicas = replicas_of(far, server, source, partial(_opened, wanted), processors)
    ingress = serve.deployment(serve.ingress()(Ingress)).options(  # type: ignore[attr-defined]  # a decorator of several forms
        name="Ingress",
        num_replicas=1,
        max_ongoing_requests=server.max_waiting * far.replicas + 256,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=DRAIN_S,
        logging_config=LoggingConfig(enable_access_log=False),
    )
    bound: Application = ingress.bind(replicas, source, far, server, own["api_key_file"], options.get("chat_template"))
    return bound


class Ingress:
    """The server without its sockets; Serve makes one, and gives it requests."""

    def __init__(
        self,
        replicas: DeploymentHandle[object],
        source: BundleSource,
        far: RaySettings,
        server: ServerSettings,
        key_file: str | None,
        chat_template: str | None,
    ) -> None:
        keys = () if key_file is None else read_keys(Path(key_file))
        check_keys(keys)
        server = replace(server, keys=keys)
        metrics = Metrics()
        front = Front(far, metrics, chat_template)
        starting = partial(still_starting, serve.get_replica_context().app_name)
        self._service = FarService(lambda _stage: front.open(replicas, source, starting), server, front)
        self._service.load()
        self._app = make_app(self._service, metrics, PageConfig().to_json())

    def __serve_build_asgi_app__(self) -> ASGIApp:  # Serve's own name
        """Return what answers requests."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                while (message := await receive())["type"] != "lifespan.shutdown":
                    await send({"type": f"{message['type']}.complete"})
                await send({"type": "lifespan.shutdown.complete"})
                return
            await self._app(scope, receive, send)

        return answer

    def __del__(self) -> None:
        """Leave the replicas; Serve calls this once the last request has been answered."""
        if hasattr(self, "_service"):
            self._service.close()


def _opened(wanted: Load, bundle: str, processors: int) -> LLM:
    """Load the model on a replica, with its prefixes, and warm."""
    threads = threads_on(processors, wanted.options.get("threads"))
    llm = load(Path(bundle), **{**wanted.options, "threads": threads})
    make_ready(llm, wanted.prefixes, wanted.system)
    return llm


def _typed(name: str, value: object) -> Any:  # Any: JSON
    """Return an argument as what it says: `serve run` has texts for all of them, a config file has not."""
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except ValueError:
            found = value
        value = value if isinstance(found, float | int) and name in ("bundle", "sha256", "names") else found
    if name in _TUPLES:
        value = tuple(value) if isinstance(value, list | tuple) else tuple(str(value).split(","))
    return value
