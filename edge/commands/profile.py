"""Measure what recipes cost in accuracy and buy in size and speed.

examples:
  edge profile run glm-4-9b-chat-hf glm4-profile
  edge profile run model.gguf out --recipes int4-asym-g64 --fail-if "kld>0.05" --fail-if "bytes>90e6"
  edge profile compare out:int8-asym/onnx out:int4-asym-g128/onnx
  edge profile report out
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.commands import kinds, options
from edge.commands.help import sections, told, usual
from edge.profiles.settings import CHUNK, DEFAULT_RECIPES, EXACT_CACHE_CHUNK, SweepSettings
from edge.runtime.settings import KV_PRECISIONS

if TYPE_CHECKING:
    from edge.profiles.comparison import Pair
    from edge.profiles.record import Profile, Row

FRONTS = ("size", "speed")  # as the last column of the table names them
KEPT = ("KLD",)  # besides the names of rows: what the narrowest terminal gets
ADVICE = "to measure a checkpoint: edge profile run CHECKPOINT OUT"  # to those who give no action
NEEDED = ("matplotlib", "nncf", "scipy")  # by the last steps of hours of work, so looked for before
RUN = """Export a checkpoint with several recipes, and measure each bundle against the float model.

OUT gets profile.json, profile.md, profile.html and the plots, anew after each setting that is measured. Finished work
is kept there: the same command resumes where it stopped, and one with more recipes measures only those.

examples:
  edge profile run glm-4-9b-chat-hf glm4-profile
  edge profile run model.gguf out --recipes int8-asym,int4-asym-g128 --engines onnx --text manual.txt --no-speed
  edge profile run model.gguf out --recipes int4-asym-g64 --fail-if "kld>0.05" --fail-if "bytes>90e6"
  edge profile run /shared/glm-4-9b-chat-hf /shared/glm4-profile --ray 192.168.1.5:6379
"""
COMPARE = """Compare two results on the same text, window by window, and say which one is better.

A and B are each a folder with a profile.json, or such a file; append :NAME for a single row of it.

examples:
  edge profile compare before after
  edge profile compare out:int8-asym/onnx out:int4-asym-g128/onnx
"""
REPORT = """Write tables, page and plots again from OUT/profile.json, also while a sweep is writing it.

examples:
  edge profile report out
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    _add_run(actions.add_parser("run", help="measure the recipes of a checkpoint", **sections(RUN)))
    compare = actions.add_parser("compare", help="tell whether two results differ", **sections(COMPARE))
    compare.add_argument("a", type=kinds.path, metavar="A", help="a result, like out:int8-asym/onnx")
    compare.add_argument("b", type=kinds.path, metavar="B", help="the result to compare it with")
    options.add_json(compare)
    report = actions.add_parser("report", help="write tables, page and plots again", **sections(REPORT))
    report.add_argument("out", metavar="OUT", help="a folder of results")
    options.add_json(report)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="CHECKPOINT", type=kinds.path, help="a checkpoint, as `edge export` takes it")
    parser.add_argument("out", metavar="OUT", help="the folder for results; one that already holds results is resumed")
    options.add_json(parser)
    cells = parser.add_argument_group("what to measure")
    cells.add_argument("--recipes", metavar="A,B", help=told("recipes to export with", DEFAULT_RECIPES))
    cells.add_argument("--engines", metavar="A,B", help=told("engines to measure on", usual(SweepSettings, "engines")))
    cells.add_argument(
        "--kv-precision",
        metavar="A,B",
        help=told(f"KV cache precisions to measure, of {', '.join(KV_PRECISIONS)}", "the engine's choice"),
    )
    device = usual(SweepSettings, "device")
    cells.add_argument("--device", metavar=options.DEVICES, help=told("device to measure on", device))
    options.add_memory(cells)
    cells.add_argument("--no-speed", action="store_true", help="do not measure loading, memory or speed")
    cells.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help=told("cores that each export and each measurement of accuracy computes on", "all of this machine's"),
    )
    cells.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="measure on a Ray cluster, given the address of its head, or auto for that of this machine; its nodes "
        "share CHECKPOINT and OUT under the same paths",
    )
    text = parser.add_argument_group("text to measure by")
    text.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="FILE",
        help=told("a text or .jsonl to measure by; repeatable", "the documentation of Python's language"),
    )
    text.add_argument(
        "--calibration", metavar="FILE", help="text for recipes that need some; it may not overlap with --text"
    )
    text.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help=told("number of tokens of the text to use", usual(SweepSettings, "num_tokens")),
    )
    text.add_argument(
        "--window",
        type=int,
        metavar="N",
        help=told("tokens read in one context", usual(SweepSettings, "window_tokens")),
    )
    text.add_argument(
        "--chunk",
        type=int,
        metavar="N",
        help=told("tokens computed at once; 1 is decoding", f"{CHUNK}; {EXACT_CACHE_CHUNK} with an f32 KV cache"),
    )
    text.add_argument(
        "--greedy",
        type=int,
        metavar="N",
        help=told(
            "tokens to generate, to see where the text departs from the float model's",
            usual(SweepSettings, "greedy_tokens"),
        ),
    )
    results = parser.add_argument_group("results")
    results.add_argument("--keep-bundles", action="store_true", help="keep the exported bundles in OUT/bundles")
    results.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="LIMIT",
        help='exit with 1 if this holds for a row, like "kld>0.05"; of kld, ppl, ppl_ratio, top1, bytes, bpw, ttft_ms, '
        "tps; repeatable",
    )


def run(args: argparse.Namespace) -> int:
    return {"run": _sweep, "compare": _compare, "report": _report}[args.action](args)


def _sweep(args: argparse.Namespace) -> int:
    from edge.commands.console import print_json
    from edge.commands.profile_progress import shown_progress
    from edge.profiles.limits import SPEED_METRICS, describe_failures, parse_limit
    from edge.profiles.report import check_folder, write_report
    from edge.profiles.sweep import sweep
    from edge.runtime.errors import ProfileError, SettingsError
    from edge.runtime.extras import check_installed

    check_installed(*NEEDED, needed="profile")
    limits = [parse_limit(text) for text in args.fail_if]
    if args.no_speed and (wrong := [limit for limit in limits if limit.metric in SPEED_METRICS]):
        raise SettingsError(f"--fail-if {wrong[0]} needs speed; leave --no-speed out")
    check_folder(Path(args.out))
    with shown_progress(Path(args.out)) as progress:
        profile = sweep(args.source, args.out, _settings(args), progress, ray=args.ray)
    write_report(profile, Path(args.out))
    if args.json:
        print_json(json.loads(profile.to_json()))
    else:
        _print_profile(profile, Path(args.out))
    if profile.failures:
        raise ProfileError("; ".join(f"{failure.name}: {failure.error}" for failure in profile.failures))
    if problem := describe_failures(limits, profile.rows):
        raise ProfileError(f"over the limit: {problem}")
    return 0


def _settings(args: argparse.Namespace) -> SweepSettings:
    """What was given; the rest is left to the class. Raises SettingsError."""
    from edge.runtime.errors import SettingsError, shown

    caches = _names(args.kv_precision)
    if caches and (unknown := [name for name in caches if name not in KV_PRECISIONS]):
        raise SettingsError(f"kv precision {shown(unknown[0])} is unknown, known are {', '.join(KV_PRECISIONS)}")
    given: dict[str, Any] = {
        "recipes": _names(args.recipes),
        "engines": _names(args.engines),
        "kv_precisions": caches,
        "texts": tuple(map(Path, args.text)) or None,
        "calibration": None if args.calibration is None else Path(args.calibration),
        "num_tokens": args.tokens,
        "window_tokens": args.window,
        "chunk_tokens": args.chunk,
        "greedy_tokens": args.greedy,
        "device": args.device,
        "max_memory_bytes": args.max_memory_bytes,
        "threads": args.threads,
        "speed": not args.no_speed,
        "keep_bundles": args.keep_bundles,
    }
    return SweepSettings(**{name: value for name, value in given.items() if value is not None})


def _names(text: str | None) -> tuple[str, ...] | None:
    """Raises SettingsError for a list of nothing."""
    from edge.runtime.errors import SettingsError, shown

    if text is None:
        return None
    if not (found := tuple(part.strip() for part in text.split(",") if part.strip())):
        raise SettingsError(f"{shown(text)} names nothing; give names separated by commas, or leave it out")
    return found


def _report(args: argparse.Namespace) -> int:
    from edge.commands.console import print_json
    from edge.profiles.record import read_profile
    from edge.profiles.report import write_report

    out = Path(args.out)
    profile = read_profile(out)
    write_report(profile, out if out.is_dir() else out.parent)
    if args.json:
        print_json(json.loads(profile.to_json()))
    else:
        _print_profile(profile, out)
    return 0


def _print_profile(profile: Profile, out: Path) -> None:
    """The table; a terminal gets what fits, and a word on what is the same in every row."""
    from edge.commands.console import print_table
    from edge.commands.tables import print_text
    from edge.profiles.columns import COLUMNS, FOR_TERMINALS, NAME, Column, same_in_all, told_once
    from edge.profiles.report import front_names, nodes, spread_unknown, warnings

    fronts = front_names(profile)

    def on(row: Row) -> str:
        found = [figure for figure, names in fronts.items() if row.name in names]
        return "both" if len(found) == len(FRONTS) else " ".join(found)

    columns, once = COLUMNS, list[Column]()
    if sys.stdout.isatty():
        columns, once = FOR_TERMINALS, told_once(profile.rows, FOR_TERMINALS)
    shown = [column for column in columns if column not in once]
    for line in (*warnings(profile), same_in_all(profile.rows, once)):
        if line:
            print_text(line)
    spare = [c.title for c in reversed(FOR_TERMINALS) if c.group != NAME and c.title not in KEPT]
    print_table(
        [*(column.title for column in shown), "front"],
        ([*(column.text(row) for column in shown), on(row)] for row in profile.rows),
        spare=[*spare[:-2], "front", *spare[-2:]],
        prose=["engine"],
        elsewhere=f"all of it is in {out}",
    )
    for line in (*spread_unknown(profile), *nodes(profile), *profile.notes):
        print_text(line)
    print(f"{out}: profile.json, profile.md, profile.html and plots")


def _compare(args: argparse.Namespace) -> int:
    from edge.commands.console import print_json
    from edge.profiles.comparison import better, compare_named, so_far

    pairs = compare_named(args.a, args.b)
    for name in dict.fromkeys((args.a, args.b)):
        if state := so_far(name):
            print(f"edge: {name}: {state}", file=sys.stderr)
    if args.json:
        print_json({"pairs": [_pair_json(pair) for pair in pairs]})
        return 0
    for pair in pairs:
        print(f"A {pair.a.name} ({args.a}), B {pair.b.name} ({args.b}), {pair.a.accuracy.windows} windows")
        for figure, unit, difference, of in (
            ("KLD", "nats/token", pair.difference.kld, [row.accuracy.kld for row in (pair.a, pair.b)]),
            ("ppl", "of its logarithm", pair.difference.log_ppl, [row.accuracy.ppl for row in (pair.a, pair.b)]),
        ):
            winner = better(difference).upper()
            verdict = f"{winner} is better" if winner else "chance explains the difference"
            print(
                f"  {figure}  A {of[0]:.5g}, B {of[1]:.5g}, B - A = {difference.mean:+.5f} ± {difference.stderr:.5f} "
                f"{unit}, z = {difference.z:.2f}, p = {difference.p:.2g}: {verdict}"
            )
    return 0


def _pair_json(pair: Pair) -> dict[str, Any]:
    from edge.profiles.comparison import better

    found = {field.name: getattr(pair.difference, field.name) for field in fields(pair.difference)}
    return {
        "a": pair.a.name,
        "b": pair.b.name,
        "windows": pair.a.accuracy.windows,
        **{
            name: {**{field.name: getattr(d, field.name) for field in fields(d)}, "better": better(d)}
            for name, d in found.items()
        },
    }
