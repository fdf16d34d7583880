"""Measure load time, first token and decode speed of a bundle.

Each prompt length is run once cold and then --repeat times. What is shown is the median ± the distance of the repeat
that is farthest from it; --json has every repeat. More than 10 % is warned of.

Every token reads all weights, and the keys and values before it, so that memory decides how fast a model can write: how
much is read, how fast, and how fast this machine reads memory is shown below the table.

examples:
  edge bench glm4-int4
  edge bench glm4-int4 --prompt-tokens 32,512,4096 --new-tokens 128 --json
  edge bench glm4-int4 --repeat 10
  edge bench glm4-int4 --engine all    # each engine in its own process, and whether auto picks the faster one
  edge bench glm4-int4 --engine all --roofline    # how far each is from the bandwidth of this machine's memory
  edge bench glm4-int4 --clients 1,4,8,16    # a server with so many clients at once, and which engine is right for it
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from edge.commands import kinds, options
from edge.commands.help import told
from edge.profiles.settings import BENCH_NEW_TOKENS, BENCH_PROMPT_TOKENS, SERVED_PROMPT_TOKENS
from edge.profiles.spread import REPEATS, SERVED_REPEATS

if TYPE_CHECKING:
    from edge.runtime.bundle import Bundle
    from edge.runtime.settings import EngineSettings

MOST_REPEATS = 1000
ROOFLINE_COLUMNS = [
    "engine",
    "prompt",
    "weights",
    "keys, values",
    "read GB/s",
    "memory GB/s",
    "share",
    "decode tok/s",
    "at most tok/s",
]
COLUMNS = ["prompt", "new", "cold TTFT ms", "TTFT ms", "prefill tok/s", "decode tok/s"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_bundle(parser)
    options.add_json(parser)
    measured = parser.add_argument_group("what to measure")
    measured.add_argument(
        "--prompt-tokens",
        type=kinds.token_counts,
        metavar="N,N",
        help=told("prompt lengths, in tokens", BENCH_PROMPT_TOKENS),
    )
    measured.add_argument(
        "--new-tokens",
        type=int,
        default=BENCH_NEW_TOKENS,
        metavar="N",
        help=told("tokens to generate after each prompt", BENCH_NEW_TOKENS),
    )
    measured.add_argument(
        "--repeat",
        type=int,
        metavar="N",
        help=told("times that each is measured, after a cold run", f"{REPEATS}; {SERVED_REPEATS} with --clients"),
    )
    measured.add_argument(
        "--clients",
        type=kinds.client_counts,
        metavar="N,N",
        help=told("start a server and measure it over HTTP with so many clients at once, like 1,4,8,16", "no server"),
    )
    measured.add_argument(
        "--roofline",
        action="store_true",
        help="how near each engine and prompt length comes to what this machine's memory allows",
    )
    options.add_engine(parser, "all")


def run(args: argparse.Namespace) -> int:
    from edge.commands.console import print_json
    from edge.profiles.speed import bench
    from edge.runtime.bundle import open_bundle
    from edge.runtime.errors import SettingsError
    from edge.runtime.rules import Whole, check_value
    from edge.runtime.settings import EngineSettings

    check_value("new_tokens", Whole(1), args.new_tokens)
    if args.repeat is None:
        args.repeat = SERVED_REPEATS if args.clients else REPEATS
    check_value("repeat", Whole(1, MOST_REPEATS), args.repeat)
    keywords = options.engine_settings(args)
    if args.prompt_tokens is None:
        args.prompt_tokens = list(SERVED_PROMPT_TOKENS if args.clients else BENCH_PROMPT_TOKENS)
    if args.engine == "all":
        del keywords["engine"]
    settings, bundle = EngineSettings(**keywords), open_bundle(args.bundle)
    _check_prompts(args.prompt_tokens, settings, bundle)
    if args.clients and args.roofline:
        raise SettingsError("--roofline is of one answer at a time: leave out --clients, or --roofline")
    if args.clients:
        from edge.commands.bench_clients import compare_servers
        from edge.runtime.extras import check_installed

        check_installed("starlette", needed="server")

        return compare_servers(args, bundle, settings)
    if args.engine == "all":
        return _compare(args, bundle, keywords)
    report = bench(args.bundle, settings, args.prompt_tokens, args.new_tokens, args.repeat)
    if args.json:
        print_json(report)
        _warn([report])
        return 0
    _print_summary(report)
    _print_results([report])
    _print_roofline([report], args.roofline)
    _warn([report])
    return 0


def _check_prompts(counts: list[int], settings: EngineSettings, bundle: Bundle) -> None:
    """Before a model is loaded, and ids of prompts are drawn. Raises SettingsError and ContextLengthError."""
    from edge.runtime.engines.limits import context_limit
    from edge.runtime.errors import ContextLengthError

    context, most = context_limit(settings, bundle.manifest.spec), max(counts)
    if most >= context:
        raise ContextLengthError(
            f"a prompt of {most:,} tokens: the context holds {context:,}, the answer included; measure shorter ones"
        )


def _compare(args: argparse.Namespace, bundle: Bundle, settings: options.Keywords) -> int:
    """Every engine that can run, each in a fresh process: load, memory and first runs are then its own."""
    from edge.commands.console import print_json
    from edge.profiles.processes import run_step
    from edge.runtime.engines.choice import choose, engines_for
    from edge.runtime.settings import EngineSettings

    task = {"task": "bench", "bundle": args.bundle, "prompt_tokens": args.prompt_tokens, "new_tokens": args.new_tokens}
    task["repeats"] = args.repeat
    reports = [
        run_step({**task, "settings": {**settings, "engine": engine}}).result
        for engine in engines_for(bundle, args.device)
    ]
    best, chosen = {}, {}
    for index, count in enumerate(args.prompt_tokens):
        seconds = {report["engine"]: _answer_s(report, index) for report in reports}
        best[count] = min(seconds, key=lambda engine: seconds[engine])
        chosen[count] = choose(bundle, EngineSettings(device=args.device, expected_prompt_tokens=count))
    if args.json:
        print_json({"engines": reports, "auto": chosen, "fastest": best})
        _warn(reports)
        return 0
    for report in reports:
        _print_summary(report)
    _print_results(reports)
    _print_roofline(reports, args.roofline)
    for count in args.prompt_tokens:
        verdict = "which is right here" if chosen[count] == best[count] else f"and {best[count]} is faster here"
        print(f"prompt of {count}: auto takes {chosen[count]}, {verdict} (load, prompt and answer together)")
    _warn(reports)
    return 0


def _answer_s(report: dict[str, Any], index: int) -> float:
    """Seconds from the start of the load to the end of a first answer.

    What an engine puts off to its first inference is in the first cold run alone, and belongs to every first answer.
    """
    first, result = report["results"][0], report["results"][index]
    put_off_ms = 0.0 if index == 0 else max(first["cold_ttft_ms"] - first["ttft_ms"], 0.0)
    decode_s = (result["new_tokens"] - 1) / (result["decode_tokens_per_second"] or float("inf"))
    return float(report["load_s"] + (put_off_ms + result["cold_ttft_ms"]) / 1000 + decode_s)


def _print_summary(report: dict[str, Any]) -> None:
    from edge.commands.console import human_bytes

    peak = report["peak_rss_bytes"]
    print(
        f"{report['bundle']} with engine {report['engine']} on {report['device']}: {report['recipe']}, "
        f"{human_bytes(report['weight_bytes'])} of weights, load {report['load_s']:.2f} s, "
        f"peak RSS {'unknown' if peak is None else human_bytes(peak)}"
    )


def _print_results(reports: list[dict[str, Any]]) -> None:
    from edge.commands.console import print_table
    from edge.profiles.spread import MEANING, with_spread

    print_table(
        ["engine", *COLUMNS],
        (
            [
                report["engine"],
                r["prompt_tokens"],
                r["new_tokens"],
                f"{r['cold_ttft_ms']:.0f}",
                with_spread(r["ttft_ms"], r["ttft_ms_spread"], 0),
                with_spread(r["prefill_tokens_per_second"], r["prefill_spread"], 1),
                with_spread(r["decode_tokens_per_second"], r["decode_spread"], 1),
            ]
            for report in reports
            for r in report["results"]
        ),
        spare=("new", "cold TTFT ms", "prefill tok/s"),
        elsewhere="--json has all",
    )
    repeats = reports[0]["repeats"]
    print("one repeat has no spread" if repeats == 1 else f"{MEANING}, of {repeats}")


def _print_roofline(reports: list[dict[str, Any]], every: bool) -> None:
    """What a token reads and how fast, of each engine after its first prompt, or of every one in a table."""
    from edge.commands.console import human_bytes, print_table

    found = [(report["engine"], r, r["roofline"]) for report in reports for r in report["results"] if r["roofline"]]
    if not every:
        first = {engine: line for engine, _, line in reversed(found)}
        for engine, line in reversed(first.items()):
            print(
                f"{engine}: a token reads {human_bytes(line['weight_bytes'])} of weights and "
                f"{human_bytes(line['cache_bytes'])} of keys and values, at {line['read_gbs']:.1f} of the "
                f"{line['machine_gbs']:.1f} GB/s that memory was read at here ({line['share']:.0%})"
            )
        return
    print_table(
        ROOFLINE_COLUMNS,
        (
            [
                engine,
                r["prompt_tokens"],
                human_bytes(line["weight_bytes"]),
                human_bytes(line["cache_bytes"]),
                f"{line['read_gbs']:.1f}",
                f"{line['machine_gbs']:.1f}",
                f"{line['share']:.0%}",
                f"{r['decode_tokens_per_second']:.1f}",
                f"{line['most_tokens_per_second']:.1f}",
            ]
            for engine, r, line in found
        ),
        spare=("keys, values", "weights", "memory GB/s"),
        elsewhere="--json has all",
    )
    print("at most: memory read at its full speed, and nothing else" if found else "only CPUs have a roofline")


def _warn(reports: list[dict[str, Any]]) -> None:
    """A line on stderr where repeats are too far apart."""
    from edge.profiles.spread import is_noisy, noise_warning

    noisy = [
        f"{title} of {report['engine']} after {r['prompt_tokens']}"
        for report in reports
        for r in report["results"]
        for title, figure, distance in (
            ("TTFT", "ttft_ms", "ttft_ms_spread"),
            ("decode", "decode_tokens_per_second", "decode_spread"),
        )
        if is_noisy(r[figure], r[distance])
    ]
    if noisy:
        print(f"edge: {noise_warning(noisy)}", file=sys.stderr)
