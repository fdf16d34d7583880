"""Tell whether a model runs on a device, with what memory and how fast, before anything is downloaded.

From a config.json alone, a GGUF's header or a bundle: memory by its parts, time until the first token, tokens a second,
the longest context that there is room for; which devices of a table run the model with which recipe, and how many
replicas serve so many clients. Of a hub id, config.json is fetched and nothing else. Every figure has its error.
Nothing here has run on an Intel GPU or NPU.

examples:
  edge fit THUDM/glm-4-9b-chat-hf
  edge fit glm-4-9b-chat-hf/config.json --device "Core Ultra 7 258V" --context 32768
  edge fit glm4-int4 --device here
  edge fit model.gguf --recipe int8-asym --json
  edge fit THUDM/glm-4-9b-chat-hf --clients 40 --tokens-per-s 8
  edge fit glm4-int4 --device arc-b580 --clients 40 --tokens-per-s 8 --simulate
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from edge.commands import kinds, options
from edge.commands.help import told

if TYPE_CHECKING:
    from edge.profiles.fit.places import Place
    from edge.profiles.fit.replicas import Clients


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        metavar="PATH",
        help="a bundle or its name, a checkpoint folder or its config.json alone, a .gguf file, or a hub id",
    )
    parser.add_argument(
        "--device",
        type=kinds.device_name,
        metavar="DEVICE",
        help=told("here, or a device of the table, like 258V or arc-b580", "here, and a table of all"),
    )
    parser.add_argument(
        "--context",
        type=kinds.whole_number,
        metavar="TOKENS",
        help=told("tokens of prompt and answer together that memory is told for", "8192, or the model's limit"),
    )
    parser.add_argument(
        "--recipe", metavar="NAME", help=told("a recipe listed by `edge recipes`", "one of each kind of weights")
    )
    parser.add_argument(
        "--memory",
        type=kinds.gigabytes,
        dest="memory_bytes",
        metavar="GB",
        help=told("memory of the machine, like 16 or 16GiB", "the most that a device can have"),
    )
    parser.add_argument(
        "--draft", metavar="PATH", help="count the memory of this model too, which is to draft for the first one"
    )
    fleet = parser.add_argument_group("more than one machine")
    fleet.add_argument(
        "--clients", type=kinds.whole_number, metavar="N", help="tell how many replicas serve so many clients at once"
    )
    fleet.add_argument(
        "--tokens-per-s", type=float, metavar="T", help="that each of --clients wants while it is answered"
    )
    fleet.add_argument(
        "--simulate",
        action="store_true",
        help="tell what these clients would wait for at the devices asked for, by rule of routing; needs edgeglm[plan]",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edge.commands.console import print_json
    from edge.commands.fit_told import print_report, print_simulations
    from edge.models.find import find_named
    from edge.profiles.devices.table import find_profile
    from edge.profiles.fit.places import HERE, place_of
    from edge.profiles.fit.report import report, simulations, simulations_json, to_json
    from edge.profiles.fit.subject import Subject, find_subject

    clients = _clients(args)
    elsewhere = args.device is not None and args.device.lower() != HERE
    profile = find_profile(args.device) if elsewhere else None  # before a hub is asked

    def subject_of(given: str) -> Subject:
        return find_subject(given, None if os.path.lexists(given) else find_named(given))

    found = report(
        subject_of(args.path),
        _here(args.memory_bytes) if profile is None else [place_of(profile, args.memory_bytes)],
        recipe=args.recipe,
        context_tokens=args.context,
        every_device=args.device is None,
        memory_bytes=args.memory_bytes,
        draft=None if args.draft is None else subject_of(args.draft),
        clients=clients,
    )
    seen = simulations(found) if args.simulate else []
    if args.json:
        print_json({**to_json(found), **({"simulated": simulations_json(seen)} if args.simulate else {})})
    else:
        print_report(found)
        print_simulations(seen)
    return 0


def _clients(args: argparse.Namespace) -> Clients | None:
    from edge.profiles.fit.replicas import Clients
    from edge.runtime.errors import SettingsError

    if (args.clients is None) != (args.tokens_per_s is None):
        raise SettingsError("replicas are counted for --clients of --tokens-per-s each; give both", param="clients")
    if args.simulate and args.clients is None:
        raise SettingsError("--simulate needs --clients and --tokens-per-s", param="simulate")
    return None if args.clients is None else Clients(args.clients, args.tokens_per_s)


def _here(memory_bytes: int | None) -> list[Place]:
    """This machine's processor, measured, and what the table knows of its other devices."""
    from edge.profiles.devices.bandwidth import measured_bandwidth
    from edge.profiles.devices.here import this_machine
    from edge.profiles.fit.places import place_here, place_of
    from edge.runtime.machine import available_bytes, memory_limits, processor_name

    machine = this_machine()
    total = min((limit.total_bytes for limit in memory_limits() if not limit.addresses), default=None)
    place = place_here(
        processor_name(),
        measured_bandwidth(),
        machine.cores,
        memory_bytes or total,
        memory_bytes or available_bytes(),
    )
    others = [profile for kind in ("gpu", "npu") if (profile := machine.profile(kind)) is not None]
    return [place, *(place_of(profile, memory_bytes or total) for profile in others)]
