"""What the self-test adds to a load, in pairs of fresh processes: one with it, one without.

    python benchmarks/self_test.py BUNDLE [--engine onnx]... [--rounds 10] [--json]

load         until `edge.load` returns
first token  until a prompt of 32 tokens has its first token: OpenVINO prepares its weights in the first inference,
             which the self-test takes from the first prompt
later        a load whose first result is known: two tokens are computed and their bits compared
first        a load that computes all golden rows, as after an export or an update; the files' hashes are known
cold         a later load whose files are not in memory (only where the system can be asked to forget them)

Shares are of the same process without a self-test; the target is at most 3 % of a later load with its first token.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import about, met_text, put_out, show_about, show_table, spread

from edge.runtime.bundle import open_bundle
from edge.runtime.engines.choice import engines_for
from edge.runtime.errors import EdgeError
from edge.runtime.first_results import FILE

TARGET = 0.03
PROMPT = 32  # tokens
WORKER = """
import json, sys, time
import edge
bundle, engine, asked, prompt = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
started = time.perf_counter()
llm = edge.load(bundle, engine=engine, self_test=asked)
loaded = time.perf_counter() - started
llm.generate(list(range(300, 300 + prompt)), max_new_tokens=1, ignore_stop_ids=True).answer()
answered = time.perf_counter() - started
found = llm.self_test
print(json.dumps([loaded, answered, None if found is None else [found.bits, found.kld, found.bound]]))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", action="append", help="default: all that run on the CPU")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        report = about(args.bundle)
        engines = args.engine or engines_for(open_bundle(args.bundle), "CPU")
        report["engines"] = [rows for engine in engines for rows in measured(args.bundle, engine, args.rounds)]
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    put_out(report, show, as_json=args.json)
    return 0 if all(row["met"] for row in report["engines"] if row["when"] == "later") else 1


def measured(bundle: Path, engine: str, rounds: int) -> list[dict[str, Any]]:
    """One row for each kind of load."""
    kinds = ("later", "first", *(("cold",) if hasattr(os, "posix_fadvise") else ()))
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        known = Path(cache) / "edgeglm" / FILE
        loaded(bundle, engine, "refuse", cache)  # now hashes and the first result are known
        for kind in kinds:
            pairs = []
            for number in range(rounds):
                pair = {}
                for asked in ("refuse", "off") if number % 2 else ("off", "refuse"):
                    if kind == "first" and asked == "refuse":
                        known.unlink(missing_ok=True)
                    if kind == "cold":
                        forget(bundle)
                    pair[asked] = loaded(bundle, engine, asked, cache)
                pairs.append(pair)
            rows.append(row(engine, kind, pairs))
    return rows


def loaded(bundle: Path, engine: str, asked: str, cache: str) -> list[Any]:
    """Seconds until loaded, until the first token, and what the self-test found."""
    command = [sys.executable, "-c", WORKER, str(bundle), engine, asked, str(PROMPT)]
    done = subprocess.run(
        command, env=os.environ | {"XDG_CACHE_HOME": cache}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EdgeError(done.stderr)
    found: list[Any] = json.loads(done.stdout)
    return found


def forget(bundle: Path) -> None:
    """Ask the system to drop a bundle's files from memory."""
    for path in bundle.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def row(engine: str, kind: str, pairs: Sequence[dict[str, list[Any]]]) -> dict[str, Any]:
    bits = {pair["refuse"][2][0] for pair in pairs}
    assert bits == ({"none"} if kind == "first" else {"same"}), f"{kind} loads found {bits}"
    load, answer = (spread([pair["refuse"][place] / pair["off"][place] - 1 for pair in pairs]) for place in (0, 1))
    seconds = [spread([pair["off"][place] for pair in pairs])["median"] for place in (0, 1)]
    return {
        "engine": engine,
        "when": kind,
        "load_s": seconds[0],
        "first_token_s": seconds[1],
        "load_share": load,
        "first_token_share": answer,
        "met": answer["median"] <= TARGET,
    }


def show(report: dict[str, Any]) -> None:
    show_about(report)
    show_table(
        [
            {
                "engine": row["engine"],
                "when": row["when"],
                "load s": f"{row['load_s']:.3f}",
                "first token s": f"{row['first_token_s']:.3f}",
                "added to the load": percent(row["load_share"]),
                "added until the first token": percent(row["first_token_share"]),
                f"at most {TARGET:.0%}": met_text(row["met"]) if row["when"] == "later" else "",
            }
            for row in report["engines"]
        ]
    )


def percent(share: dict[str, float]) -> str:
    return f"{share['median']:+.1%} ({share['low']:+.1%} to {share['high']:+.1%})"


if __name__ == "__main__":
    sys.exit(main())
