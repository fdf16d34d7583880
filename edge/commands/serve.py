"""Serve a model over HTTP, with OpenAI's protocol and a page.

Clients of OpenAI's API use it by their base URL, http://127.0.0.1:8000/v1; a browser finds a page to talk to the model
at http://127.0.0.1:8000. Only programs on this machine can reach it, unless --host and --api-key-file say otherwise.
Answers follow the sampling that the model's makers recommend, where a request does not set its own and --sampling does
not say greedy. Ctrl-C or SIGTERM ends it
once running answers are done.

examples:
  edge serve glm4-int4
  edge serve glm4-int4 --port 8080 --system-file kiosk.txt --prefix kiosk.prefix
  edge serve glm4-int4 --host 0.0.0.0 --api-key-file keys.txt
  edge serve glm4-int4 --ray --replicas 2 --threads 4
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.commands import kinds, options, reuse
from edge.commands.help import told, usual
from edge.commands.sampling import add_usual_sampling, say_sampling

if TYPE_CHECKING:
    from edge.runtime.llm import LLM
    from edge.server.service import Stage
    from edge.server.settings import ServerSettings

EXPECTED_CLIENTS = 8
KEY_VARIABLE = "EDGE_API_KEY"  # for containers, whose secrets come in variables; a key as an option could be listed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from edge.server.settings import ServerSettings

    options.add_bundle(parser, may_be_missing=True)
    where = parser.add_argument_group("where to listen")
    _add(where, "--host", "host", metavar="ADDRESS")
    _add(where, "--port", "port", type=int, metavar="N")
    _add(where, "--uds", "uds", type=kinds.path, metavar="FILE", usual_is="none")
    _add(where, "--root-path", "root_path", metavar="PATH", usual_is="none")
    who = parser.add_argument_group("who may use it")
    who.add_argument(
        "--api-key-file",
        type=kinds.path,
        metavar="FILE",
        help=f"a file of keys, one a line; a request has to show one of them (default: that in {KEY_VARIABLE}, if any)",
    )
    who.add_argument("--no-key", action="store_true", help="let everyone use it who reaches --host, without a key")
    _add(who, "--allowed-host", "allowed_hosts", action="append", metavar="NAME", usual_is="none")
    _add(who, "--cors-origin", "cors_origins", action="append", metavar="ORIGIN", usual_is="none")
    what = parser.add_argument_group("what is served")
    what.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAMES",
        help="what requests may call the model, separated by commas (default: the name of the bundle's folder)",
    )
    what.add_argument(
        "--expected-clients",
        type=int,
        default=EXPECTED_CLIENTS,
        metavar="N",
        help=told("answers that will be written at once, which decides what engine is right", EXPECTED_CLIENTS),
    )
    options.add_template(what)
    what.add_argument("--any-model", action="store_true", help="answer whatever model a request names")
    add_usual_sampling(what, usual(ServerSettings, "sampling"), "request")
    _add(what, "--context-policy", "context_policy", metavar="{error,drop-oldest}")
    what.add_argument(
        "--page-config", type=kinds.path, metavar="FILE", help="words, times and suggestions of the page, as JSON"
    )
    what.add_argument("--log-prompts", action="store_true", help="log the bodies of requests, with --log-level info")
    limits = parser.add_argument_group("limits")
    _add(limits, "--max-waiting", "max_waiting", type=int, metavar="N")
    _add(limits, "--max-connections", "max_connections", type=int, metavar="N")
    _add(
        limits,
        "--max-body-bytes",
        "max_body_bytes",
        type=kinds.size,
        metavar="SIZE",
        usual_is="8 MiB, or 32 MiB for a model that sees pictures",
    )
    _add(limits, "--header-timeout", "header_timeout_s", type=float, metavar="SECONDS")
    _add(limits, "--body-timeout", "body_timeout_s", type=float, metavar="SECONDS")
    _add(limits, "--send-timeout", "send_timeout_s", type=float, metavar="SECONDS")
    _add(limits, "--stall-seconds", "stall_s", type=float, metavar="SECONDS")
    _add(limits, "--shutdown-seconds", "shutdown_s", type=float, metavar="SECONDS")
    _add_ray(parser)
    options.add_engine(parser)
    reuse.add_prefixes(parser, drafts=True)


def run(args: argparse.Namespace) -> int:
    from edge.runtime.settings import engine_settings
    from edge.runtime.terminal_text import visible
    from edge.server.app import make_app
    from edge.server.metrics import Metrics
    from edge.server.page_config import PageConfig, read_page_config
    from edge.server.run import bind, serve, url_of
    from edge.server.service import Service
    from edge.server.systemd import Notifier

    settings = _settings(args)
    engine_settings(**options.engine_settings(args))  # refuse a bad value before anybody can connect
    page = PageConfig() if args.page_config is None else read_page_config(Path(args.page_config))
    metrics = Metrics()
    with ExitStack() as leaving:
        if args.ray is None:
            _refuse_ray_options(args)
            service = Service(lambda stage: _opened(args, stage), settings)
        else:
            from edge.commands.serve_ray import far_service

            service = leaving.enter_context(far_service(args, settings, metrics))
        app = make_app(service, metrics, page.to_json())
        bound = bind(settings)
        where = f"{visible(settings.names[0])} at {visible(url_of(bound))}"
        print(f"serving {where}, once it is loaded", flush=True)
        serve(app, service, bound, Notifier())
    return 0


def _settings(args: argparse.Namespace) -> ServerSettings:
    from edge.runtime.errors import SettingsError
    from edge.runtime.files import real_path
    from edge.server.keys import check_keys, read_keys
    from edge.server.settings import ServerSettings

    keys: tuple[str, ...] = ()
    if args.api_key_file is not None:
        keys = read_keys(Path(args.api_key_file))
    elif key := os.environ.get(KEY_VARIABLE):
        keys = (key,)
    check_keys(keys)
    names = [name.strip() for alias in args.alias for name in alias.split(",") if name.strip()]
    folder = Path(args.bundle)
    names = names or [real_path(folder).name]
    known = {spec.name for spec in fields(ServerSettings)} - {"names", "keys"}
    given = {name: getattr(args, name) for name in known if getattr(args, name, None) is not None}
    settings = ServerSettings(**given, names=tuple(dict.fromkeys([*names, folder.name, args.bundle])), keys=keys)
    if not settings.is_local and not keys and not args.no_key:
        raise SettingsError(
            f"--host {settings.host} lets other machines use this model, and there is no key; give --api-key-file "
            "FILE, or say --no-key if everyone there may use it"
        )
    return settings


def _opened(args: argparse.Namespace, stage: Stage) -> LLM:
    llm = loaded(args, stage)
    print(f"ready: {llm.engine.info.name} on {llm.engine.info.device}", flush=True)
    say_sampling(llm, {"sampling": args.sampling})
    return llm


def loaded(args: argparse.Namespace, stage: Stage) -> LLM:
    """Load a model with all that the options say, and warm it up."""
    from edge.api import load
    from edge.server.warm_up import make_ready

    stage("reading weights and compiling", 0.1)
    chosen = {**options.engine_settings(args), "expected_clients": args.expected_clients}
    system, documents = reuse.given_system(args), reuse.given_documents(args)  # refused before anything is loaded
    llm = load(args.bundle, **reuse.reuse_settings(args, chosen))
    make_ready(llm, args.prefix, system, documents, stage)
    stage("ready", 1.0)
    return llm


def _add_ray(parser: argparse.ArgumentParser) -> None:
    from edge.runtime.cluster import OWN
    from edge.server.ray.settings import SHELF

    group = parser.add_argument_group("replicas on a Ray cluster")
    group.add_argument(
        "--ray",
        nargs="?",
        const=OWN,
        metavar="ADDRESS",
        help="compute on the cluster whose head is at this address, like 192.168.1.5:6379, or auto for that of this "
        "machine; without an address, on a cluster of this machine alone that ends with this command",
    )
    group.add_argument(
        "--replicas",
        type=int,
        metavar="N",
        help="replicas of the model, each with an engine and --threads of its own (default: 1; needs --ray)",
    )
    group.add_argument(
        "--resume-streams",
        action="store_true",
        help="go on with a stream on another replica when its own is lost, in place of ending it (needs --ray)",
    )
    group.add_argument(
        "--fetch",
        nargs="?",
        const=SHELF,
        metavar="URL",
        help="let nodes that do not have the bundle at its path fetch it once, from the machine of this command or "
        "from a folder at this URL; what is fetched is compared with the manifest here (needs --ray)",
    )


def _refuse_ray_options(args: argparse.Namespace) -> None:
    from edge.runtime.errors import SettingsError

    needing = ((args.replicas, "--replicas"), (args.resume_streams, "--resume-streams"), (args.fetch, "--fetch"))
    for given, option in needing:
        if given:
            raise SettingsError(f"{option} is about replicas on a cluster; give --ray too")


def _add(
    group: argparse._ArgumentGroup, option: str, name: str, usual_is: str | None = None, **more: Any
) -> None:  # Any: argparse's own keywords
    """Add an option for a setting of the server, with its purpose and default."""
    from edge.runtime.rules import help_of
    from edge.server.settings import ServerSettings

    (spec,) = (spec for spec in fields(ServerSettings) if spec.name == name)
    default = usual_is or usual(ServerSettings, name)
    group.add_argument(option, dest=name, default=None, help=told(help_of(spec), default), **more)
