"""List the devices of this machine and the engines that run on them.

examples:
  edge devices
  edge devices --json
"""

from __future__ import annotations

import argparse

from edge.commands import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_json(parser)


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
