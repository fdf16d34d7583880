"""Measure what recipes cost in accuracy and buy in size and speed.

examples:
  edge profile glm-4-9b-chat-hf glm4-profile
  edge profile model.gguf out --recipes int8-asym,int4-asym-g128 --engines onnx --text manual.txt --no-speed
  edge profile model.gguf out --recipes int4-asym-g64 --fail-if "kld>0.05" --fail-if "bytes>90e6"
  edge profile compare out:int8-asym/onnx out:int4-asym-g128/onnx     # a folder or a JSON file, one row of it or all
  edge profile report out                                             # tables, page and plots anew from profile.json

OUT gets profile.json, .md and .html and the plots. What is finished is kept there: the same command again goes on where
it stopped, and with another recipe does what is missing. A checkpoint called compare or report is ./compare, ./report.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.profiles.comparison import Pair
    from edge.profiles.record import Profile
    from edge.profiles.sweep_plan import SweepSettings
    from edge.profiles.sweep_progress import SweepProgress

NEEDED = ("matplotlib", "nncf", "scipy")  # by the last steps of hours of work, so looked for before


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "edge profile SOURCE OUT [options]\n       edge profile compare A B [--json]\n       edge profile report OUT"
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="a checkpoint, as `edge export` takes it; or compare or report"
    )
    parser.add_argument("out", metavar="OUT", help="the folder for results; one that holds results is gone on with")
    parser.add_argument("other", nargs="?", metavar="B", help=argparse.SUPPRESS)
    parser.add_argument("--recipes", metavar="A,B", help="default: a choice from 8 bits to the smallest 4 bits")
    parser.add_argument("--engines", metavar="A,B", help="default: openvino,onnx")
    parser.add_argument(
        "--kv-precision",
        metavar="A,B",
        help="caches to measure, of f32, f16, bf16, u8, u4. default: the engine's choice",
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="FILE",
        help="measure by this text or .jsonl; repeatable. default: the documentation of Python's language",
    )
    parser.add_argument(
        "--calibration", metavar="FILE", help="text for recipes that need some; may share none of --text"
    )
    parser.add_argument("--tokens", type=int, metavar="N", help="of the text. default: 20480")
    parser.add_argument("--window", type=int, metavar="N", help="tokens that are read in one context. default: 512")
    parser.add_argument(
        "--chunk",
        type=int,
        metavar="N",
        help="tokens computed at once; 1 is decoding. default: 16; 128 with an f32 cache",
    )
    parser.add_argument(
        "--greedy", type=int, metavar="N", help="tokens written to see where text leaves the float model's. default: 64"
    )
    parser.add_argument("--device", metavar="CPU|GPU|NPU", help="default: CPU")
    parser.add_argument("--no-speed", action="store_true", help="measure neither loading nor memory nor speed")
    parser.add_argument("--keep-bundles", action="store_true", help="leave the exported bundles in OUT/bundles")
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="LIMIT",
        help='exit with 1 if this holds of a row, like "kld>0.05"; of kld, ppl, ppl_ratio, top1, bytes, bpw, ttft_ms, '
        "tps; repeatable",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    if (args.source == "compare") != (args.other is not None):
        args.refuse("compare takes two results, A and B; everything else one folder")
    if args.source == "compare":
        return _compare(args)
    return _report(args) if args.source == "report" else _sweep(args)


def _sweep(args: argparse.Namespace) -> int:
    from importlib.util import find_spec

    from edge.commands.console import print_json
    from edge.profiles.limits import SPEED_METRICS, describe_failures, parse_limit
    from edge.profiles.report import check_folder, write_report
    from edge.profiles.sweep import sweep
    from edge.runtime.errors import ProfileError, SettingsError

    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ModuleNotFoundError(name=missing[0])
    limits = [parse_limit(text) for text in args.fail_if]
    if args.no_speed and (wrong := [limit for limit in limits if limit.metric in SPEED_METRICS]):
        raise SettingsError(f"--fail-if {wrong[0]} needs speed; leave --no-speed out")
    check_folder(Path(args.out))
    with _progress() as progress:
        profile = sweep(args.source, args.out, _settings(args), progress)
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
    from edge.profiles.sweep_plan import SweepSettings
    from edge.runtime.errors import SettingsError, shown
    from edge.runtime.settings import KV_PRECISIONS

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
        raise SettingsError(f"{shown(text)} names nothing; give names with commas between them, or leave it out")
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
    from edge.commands.console import print_table
    from edge.profiles.report import COLUMNS

    print_table(
        [column.title for column in COLUMNS], ([column.text(row) for column in COLUMNS] for row in profile.rows)
    )
    for note in profile.notes:
        print(note)
    print(f"{out}: profile.json, profile.md, profile.html and plots")


def _compare(args: argparse.Namespace) -> int:
    from edge.commands.console import print_json
    from edge.profiles.comparison import better, compare_named

    pairs = compare_named(args.out, args.other)
    if args.json:
        print_json({"pairs": [_pair_json(pair) for pair in pairs]})
        return 0
    for pair in pairs:
        print(f"A {pair.a.name} ({args.out}), B {pair.b.name} ({args.other}), {pair.a.accuracy.windows} windows")
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


@contextmanager
def _progress() -> Iterator[Callable[[SweepProgress], None]]:
    """A line on stderr for each cell; where stderr is a terminal, below them a bar with the step and the time left."""
    from edge.commands.console import terminal_bar
    from edge.commands.streams import visible

    with terminal_bar() as bar:
        if bar is None:
            yield _tell
            return
        task = bar.task_ids[0]

        def show(progress: SweepProgress) -> None:
            if line := _line(progress):
                bar.console.print(visible(line), markup=False, highlight=False)
            left = "" if progress.seconds_left is None else f"{progress.seconds_left:.0f} s left"
            bar.update(
                task,
                description=f"{progress.step}: {progress.phase}",
                completed=progress.steps_done + progress.share,
                total=max(progress.num_steps, 1),
                left=left,
            )

        yield show


def _tell(progress: SweepProgress) -> None:
    if line := _line(progress):
        print(line, file=sys.stderr, flush=True)


def _line(progress: SweepProgress) -> str:
    """What stays of a cell that is finished; empty while one is under way."""
    row, done = progress.row, f"[{progress.steps_done}/{progress.num_steps}]"
    if progress.failure is not None:
        return f"{done} {progress.failure.name}: failed: {progress.failure.error}"
    if row is None:
        return ""
    tps = row.decode_tokens_per_second
    speed = "" if tps is None else f", {tps:.1f} tok/s"
    return f"{done} {row.name}: KLD {row.accuracy.kld:.5f}, {row.weight_bytes:,} bytes{speed}"
