"""Check a bundle's files and what it computes on a device.

examples:
  edge verify glm4-int4
  edge verify glm4-int4 --device GPU
"""

from __future__ import annotations

import argparse
import dataclasses


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--device", default="CPU", metavar="CPU|GPU|NPU", help="default: CPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from edge.commands.console import human_bytes, print_json
    from edge.runtime.verify import verify

    def checked(name: str, size: int) -> None:
        if not args.json:
            print(f"  {name:<24} {human_bytes(size):>10}  sha256 as recorded")

    report = verify(args.bundle, args.device, checked)
    if args.json:
        print_json(dataclasses.asdict(report))
        return 0
    print(f"  golden logits on {report.device}: off by {report.exact_error:.1e} of their scale in float32")
    print(f"  KLD from the float model: {report.kld_exact:.4f} in float32, {report.kld_device:.4f} as it will run")
    print(f"{args.bundle}: verified")
    return 0
