"""What the KV cache costs and saves: its own time, prefix files, memory of long contexts, and what it does to results.

    python benchmarks/kv.py BUNDLE [--part overhead|snapshot|margins]... [--engine openvino|onnx|both] [--rounds 3]
                            [--json]
    python benchmarks/kv.py BUNDLE --part long [--long-tokens 100000]

Without --part, all run but `long`, which makes a model of its own and takes some minutes.

overhead  The time of a decode step that is neither the engine's inference nor the choice of a token and its text
          (`Request.accept`): scheduler, block tables, prefix cache, and setting the engine's inputs. "a step" is the
          median over the decode steps of answers of 128 tokens after 512, one a round, "of TPOT" its share of the
          whole step; "engine" is the part of it inside Engine.decode, around the inference. "an answer" is what each
          answer takes once: looking its prompt up, and keeping it when it has ended. Targets: below 2 % at the widths
          of a 9B model, below 10 % on a smaller one. In a model cut to fewer layers the share is larger than in the
          whole model.

snapshot  A prefix of 2,000 tokens and 16 more: time to the first token by computing all of it, against opening the
          file, checking its sha256, copying it into the cache and computing the rest. Both use a warm engine in one
          process, in turn, with the prefix cache cleared and the file in the page cache; the ratios are paired. Target:
          20. "process" is one `edge run` each way, from start to end, including the model's load. "save" writes a
          prefix that is in the cache already.

long      Memory of 100,000 tokens in a model of four small layers that is made for this, in fresh processes: the
          largest resident memory (VmHWM) and the anonymous memory at the end, against weights, keys and values by
          Engine.kv_bytes_per_token, and 1 GB. Targets: no more than that, and u4 at most 0.6 of u8's bytes.

margins   How far results may differ when the same is computed in different ways: the largest difference of a logit, and
          how many greedy choices change, over 2 x 200 tokens of text (CPython's documentation), each given to both
          ways whatever they would choose. What is bit-equal differs by 0: with a reproducible engine that holds for
          rows, sequences and chunks, unless the cache's tokens depend on each other, as in u8 and u4. "answer from
          decode steps, read" compares a follow-up to an answer whose keys and values are kept from its decode steps
          with a follow-up to the same ids read as a prompt; OpenVINO's attention rounds these two differently anyway.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from kv_long import LONG_TOKENS, long
from kv_margins import DECODED, TEXTS, margins
from kv_overhead import overhead
from kv_snapshot import MESSAGE, PREFIX, snapshot
from report import about, met_text, put_out, ratio_text, show_about, show_table

from edge.runtime.errors import EdgeError

PARTS = ("overhead", "snapshot", "margins", "long")
MAX_U4 = 0.6  # bytes of u4 over those of u8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--engine", choices=("openvino", "onnx", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long-tokens", type=int, default=LONG_TOKENS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    engines: list[str] = ["openvino", "onnx"] if args.engine == "both" else [args.engine]
    try:
        report = about(args.bundle)
        for part in args.part or PARTS[:3]:
            if part == "long":
                report[part] = long(engines, args.long_tokens)
            elif part == "margins":
                report[part] = [row for engine in engines for row in margins(args.bundle, engine)]
            else:
                measure = overhead if part == "overhead" else snapshot
                report[part] = [row for engine in engines for row in measure(args.bundle, engine, args.rounds)]
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    put_out(report, show, as_json=args.json)
    return 0


# --- Reporting --------------------------------------------------------------------------------------------------------


def show(report: dict[str, Any]) -> None:
    show_about(report)
    if "overhead" in report:
        print("overhead")
        show_table(
            [
                {
                    "engine": r["engine"],
                    "TPOT ms": r["tpot_ms"],
                    "a step µs": r["step_us"],
                    "of it engine": r["of_it_engine_us"],
                    "of TPOT": f"{r['share']:.2%}",
                    "choice and text µs": r["choice_us"],
                    "an answer µs": r["answer_us"],
                    "target": f"below {r['target']:.0%}: {met_text(r['met'])}",
                }
                for r in report["overhead"]
            ]
        )
    if "snapshot" in report:
        print(f"snapshot of {PREFIX} tokens, {MESSAGE} more to compute")
        show_table(
            [
                {
                    "engine": r["engine"],
                    "computed ms": r["computed_ms"],
                    "from file ms": r["from_file_ms"],
                    "of it open": r["of_it_open_ms"],
                    "gain": ratio_text(r["gain"]),
                    "same token": f"{r['same_first_token']} of {r['rounds']}",
                    "file bytes": f"{r['file_bytes']:,}",
                    "save s": r["save_s"],
                    "target": f"{r['target']:.0f}: {met_text(r['met'])}",
                    **{f"process {key} s": p["s"] for key, p in r["processes"].items()},
                    "tokens from file": r["processes"]["with"]["cached_tokens"],
                }
                for r in report["snapshot"]
            ]
        )
    if "margins" in report:
        print(f"margins over {TEXTS} x {DECODED} tokens")
        show_table(
            [
                {
                    "engine": r["engine"],
                    "cache": r["cache"],
                    "reproducible": "yes" if r["reproducible"] else "no",
                    "what": r["what"],
                    "largest difference": f"{r['largest_difference']:.3g}",
                    "changed choices": f"{r['changed_choices']} of {r['of']}",
                }
                for r in report["margins"]
            ]
        )
    if "long" in report:
        show_long(report["long"])


def show_long(rows: list[dict[str, Any]]) -> None:
    print("long")
    for row in rows:
        if "error" in row:
            print(f"{row['engine']} {row['cache']} failed: {row['error']}")
    measured = [row for row in rows if "error" not in row]
    show_table([{**row, "met": met_text(row["met"])} for row in measured])
    per_token = {row["cache"]: row["kv_bytes_per_token"] for row in measured if row["engine"] == "openvino"}
    if "u4" in per_token and "u8" in per_token:
        ratio = per_token["u4"] / per_token["u8"]
        print(f"bytes of u4 over those of u8: {ratio:.3f}, target at most {MAX_U4}: {met_text(ratio <= MAX_U4)}")


if __name__ == "__main__":
    sys.exit(main())
