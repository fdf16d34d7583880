"""Measure load time, first token and decode speed of a bundle.

examples:
  edge bench glm4-int4
  edge bench glm4-int4 --prompt-tokens 32,512,4096 --new-tokens 128 --json
"""

from __future__ import annotations

import argparse
import dataclasses
import time

from edge.commands import options


def _token_counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of token counts; give numbers like 32,512")
    return counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    options.add_engine(parser)
    parser.add_argument("--prompt-tokens", type=_token_counts, default="32,512", metavar="N,N", help="default: 32,512")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from edge.api import load
    from edge.commands.console import human_bytes, peak_rss_bytes, print_json, print_table
    from edge.profiles.speed import measure

    started = time.perf_counter()
    llm = load(args.bundle, **options.engine_settings(args))
    load_s = time.perf_counter() - started
    results = measure(llm, args.prompt_tokens, args.new_tokens)
    manifest, peak = llm.bundle.manifest, peak_rss_bytes()
    if args.json:
        print_json(
            {
                "bundle": str(args.bundle),
                "recipe": manifest.recipe,
                "device": args.device,
                "load_s": round(load_s, 3),
                "weight_bytes": manifest.weight_bytes,
                "bits_per_weight": manifest.bits_per_weight,
                "kv_bytes_per_token": llm.engine.kv_bytes_per_token,
                "peak_rss_bytes": peak,
                "versions": dict(manifest.versions),
                "results": [dataclasses.asdict(result) for result in results],
            }
        )
        return 0
    print(
        f"{args.bundle} on {args.device}: {manifest.recipe}, {human_bytes(manifest.weight_bytes)} of weights, "
        f"load {load_s:.2f} s, peak RSS {'unknown' if peak is None else human_bytes(peak)}"
    )
    print_table(
        ["prompt", "new", "cold TTFT ms", "TTFT ms", "prefill tok/s", "decode tok/s"],
        (
            [
                r.prompt_tokens,
                r.new_tokens,
                f"{r.cold_ttft_ms:.0f}",
                f"{r.ttft_ms:.0f}",
                f"{r.prefill_tokens_per_second:.1f}",
                f"{r.decode_tokens_per_second:.1f}",
            ]
            for r in results
        ),
    )
    return 0
