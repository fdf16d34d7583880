"""List the devices of this machine and what runs on them."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from edge.commands.console import print_json, print_table
    from edge.runtime.engines.choice import find_devices

    devices = find_devices()
    if args.json:
        rows = [{"name": d.name, "full_name": d.full_name, "engines": engines} for d, engines in devices.items()]
        print_json({"devices": rows})
        return 0
    print_table(
        ["device", "engines", "what it is"],
        ([d.name, ", ".join(engines) or "none yet", d.full_name] for d, engines in devices.items()),
    )
    return 0
