"""Check a bundle's files and what every engine computes from them.

Files are compared with the hashes in the manifest, and the logits of a short text with those that the export recorded.
For an NPU or a GPU, rules first tell what such a device is known to crash on or to compute wrongly (docs/lint.md). If
this machine has none, the rules are all that is checked, and the command fails if one of them says crash or garbage.

examples:
  edge verify glm4-int4
  edge verify glm4-int4 --device GPU
  edge verify glm4-int4 --device GPU --report report.json    # to attach to an issue
  edge verify glm4-int4 --device NPU --platform 3720 --max-prompt-tokens 4096
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.commands import kinds, options
from edge.runtime.machine import family_of
from edge.runtime.settings import LENGTH_NAMES

if TYPE_CHECKING:
    from edge.runtime.bundle import Bundle
    from edge.runtime.lint import Finding, Target
    from edge.runtime.verify import Report

LINTED = ("NPU", "GPU")  # families that there are rules for
RULES_ALONE = "checked by rules alone: nothing was compiled or computed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_bundle(parser)
    options.add_device(parser)
    options.add_memory(parser)
    parser.add_argument(
        "--platform",
        type=kinds.device_name,
        metavar="NAME",
        help="check for this kind of NPU (3720, 4000, 5010, 5020) where the device itself does not tell",
    )
    parser.add_argument(
        "--report",
        type=kinds.path,
        metavar="FILE",
        help="run what tells most about the device instead, and write versions, rules, figures and failures to FILE",
    )
    options.add_json(parser)
    options.add_lengths(parser)


def run(args: argparse.Namespace) -> int:
    from edge.commands.console import human_bytes, print_json
    from edge.runtime.bundle import open_bundle
    from edge.runtime.verify import verify

    def checked(name: str, size: int) -> None:
        if not args.json:
            print(f"  {name:<24} {human_bytes(size):>10}  sha256 as recorded")

    bundle = open_bundle(args.bundle)
    told: dict[str, Any] = {"manifest_has_digest": bundle.manifest.has_digest, "engines": []}  # Any: JSON
    failed, here = False, True
    if family_of(args.device) in LINTED:
        target, findings = _linted(bundle, args)
        failed, here = any(finding.refused for finding in findings), target.found
        told["lint"] = _as_json(target, findings)
        if not args.json:
            _print_lint(target, findings)
    else:
        findings = ()
    if args.report is not None:
        return _reported(bundle, args, findings, told)
    reports: Sequence[Report] = ()
    if here and not failed:  # what would crash is not tried
        reports = verify(bundle, args.device, checked, args.max_memory_bytes)
        told["engines"] = [dataclasses.asdict(report) for report in reports]
    if args.json:
        print_json(told)
        return int(failed)
    if not bundle.manifest.has_digest:
        print("  manifest.json is of an earlier version, which has no sha256 of its own; a new export has one")
    for report in reports:
        print(
            f"  {report.engine} on {report.device}: golden logits off by {report.exact_error:.1e} of their scale in "
            f"float32; KLD from the float model {report.kld_exact:.4f}, as it will run {report.kld_device:.4f}"
        )
        print(f"    self-test: {report.self_test.in_words}")
        if report.picture_error is not None:
            print(
                f"    a small picture: rows off by {report.picture_error:.1e} of their scale in float32; by "
                f"{report.picture_loss:.1%} from the float tower's, as it will run"
            )
    print(f"{args.bundle}: {'not for this device' if failed else 'verified' if here else RULES_ALONE}")
    return int(failed)


def _reported(bundle: Bundle, args: argparse.Namespace, findings: Sequence[Finding], told: dict[str, Any]) -> int:
    """Write the report; fail where rules refuse the device or anything in it failed."""
    from edge.commands.console import print_json
    from edge.runtime.device_report import write_report

    report = write_report(bundle, args.device, Path(args.report), findings)
    refused = any(finding.refused for finding in findings)
    if args.json:
        print_json({**told, "report": str(report.path), "failures": list(report.failures)})
    else:
        for failure in report.failures:
            print(f"  failed: {failure}")
        print(f"{report.path}: written; attach it to an issue, it names no person, path or model")
    return int(refused or bool(report.failures))


def _linted(bundle: Bundle, args: argparse.Namespace) -> tuple[Target, tuple[Finding, ...]]:
    """What the rules say about a device, which may be another machine's."""
    from edge.runtime.lint import check, target_here
    from edge.runtime.settings import engine_settings

    given = {name: getattr(args, name) for name in (*LENGTH_NAMES, "max_memory_bytes")}
    target = target_here(args.device, engine_settings(args.device, **given))
    target = dataclasses.replace(target, platform=target.platform or args.platform)
    return target, check(bundle, target)


def _as_json(target: Target, findings: Sequence[Finding]) -> dict[str, Any]:  # Any: JSON
    return {
        "target": dataclasses.asdict(target),
        "rules": _rule_ids(target),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def _print_lint(target: Target, findings: Sequence[Finding]) -> None:
    rules = len(_rule_ids(target))
    platform = f" {target.platform}" if target.platform else ""
    place = target.name or ("on this machine" if target.found else "not on this machine")
    print(f"  {target.device}{platform}, {place}: {rules - len(findings)} of {rules} rules hold")
    for finding in findings:
        print(f"  {finding.severity}: {finding.rule}: {finding.message}\n    {finding.advice}\n    ({finding.source})")


def _rule_ids(target: Target) -> list[str]:
    from edge.runtime.lint import RULES

    return [rule.id for rule in RULES.values() if rule.family == target.family]
