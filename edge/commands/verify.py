"""Check a bundle's files and what every engine computes from them.

Files are compared with the hashes in the manifest, and the logits of a short text with those that the export recorded.

examples:
  edge verify glm4-int4
  edge verify glm4-int4 --device GPU
"""

from __future__ import annotations

import argparse
import dataclasses

from edge.commands import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_bundle(parser)
    options.add_device(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edge.commands.console import human_bytes, print_json
    from edge.runtime.bundle import open_bundle
    from edge.runtime.verify import verify

    def checked(name: str, size: int) -> None:
        if not args.json:
            print(f"  {name:<24} {human_bytes(size):>10}  sha256 as recorded")

    bundle = open_bundle(args.bundle)
    reports = verify(bundle, args.device, checked)
    if args.json:
        covered = bundle.manifest.has_digest
        print_json({"manifest_has_digest": covered, "engines": [dataclasses.asdict(report) for report in reports]})
        return 0
    if not bundle.manifest.has_digest:
        print("  manifest.json is of an earlier version, which has no sha256 of its own; a new export has one")
    for report in reports:
        print(
            f"  {report.engine} on {report.device}: golden logits off by {report.exact_error:.1e} of their scale in "
            f"float32; KLD from the float model {report.kld_exact:.4f}, as it will run {report.kld_device:.4f}"
        )
    print(f"{args.bundle}: verified")
    return 0
