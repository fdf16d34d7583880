"""Put `edge serve` under the load of many clients, and see that nothing is lost, mixed up, or kept.

    python benchmarks/load.py BUNDLE [--part with-limit|without-limit|rates]... [--engine auto] [--clients 32]
                              [--seconds 120] [--contexts 4] [--max-context 512] [--questions 24]
                              [--rate-seconds 20] [--json]

with-limit, without-limit: a server with --reproducible and room for --contexts contexts is asked by --clients clients
for --seconds, with max_tokens or without. A quarter of the requests is abandoned, most in mid-stream. Each whole answer
has to equal what the same question gets alone; nothing may be lost; afterwards no more of the cache is in use than
before; the largest memory of the process may be at most 10 % above that of the first quarter.

rates: saturation is the number of requests a second at which --clients clients, each with a question in flight, are
answered. Then requests arrive at random (Poisson) at 25, 50, 75 and 100 % of that, --rate-seconds each, whether or not
earlier ones have been answered: time to first token, gaps between tokens, and how many were refused with 429.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from crowd import BUSY, OK, Outcome, questions, run_crowd, single_runs
from engine_worker import status_kb
from report import about, met_text, put_out, show_about, show_table

from edge.profiles.http_load import Post, Reply, arrive, ask
from edge.profiles.server_process import Server, free_port, serve_command, started
from edge.profiles.serving import percentile, spoken, summed_up
from edge.runtime.bundle import open_bundle
from edge.runtime.errors import EdgeError

PARTS = ("with-limit", "without-limit", "rates")
SHARES = (0.25, 0.5, 0.75, 1.0)
GROWTH = 1.10
SETTLE_S = 30.0
SAMPLE_S = 0.5
RATE_TOKENS = 48  # of each answer of the rates' part
BLOCK = 16  # tokens that the cache may round up to
BYTES_PER_VALUE = 2  # f16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--contexts", type=int, default=4, help="that the cache has room for")
    parser.add_argument("--max-context", type=int, default=512)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--rate-seconds", type=float, default=20)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        report = about(args.bundle)
        report["settings"] = {
            name: getattr(args, name) for name in ("engine", "clients", "seconds", "contexts", "max_context")
        }
        parts = args.part or PARTS
        report["crowds"] = [crowd_part(args, part) for part in parts if part != "rates"]
        report["rates"] = rates_part(args) if "rates" in parts else []
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    put_out(report, show, as_json=args.json)
    return 0 if all(target["met"] for crowd in report["crowds"] for target in crowd["targets"]) else 1


def pool_options(bundle: Path, contexts: int, max_context: int) -> tuple[str, ...]:
    """A cache in f16 with room for so many contexts, and answers that do not depend on what else is computed."""
    values = open_bundle(bundle).manifest.spec.kv_values_per_token
    size = contexts * (max_context + BLOCK) * values * BYTES_PER_VALUE
    cache = ("--max-context", str(max_context), "--kv-cache-gb", f"{size / 1e9:.6f}", "--kv-precision", "f16")
    return ("--reproducible", *cache)


def serving(args: argparse.Namespace, *options: str) -> Any:
    port = free_port()
    return started(serve_command(str(args.bundle), port, "--engine", args.engine, *options), port)


# --- A crowd ----------------------------------------------------------------------------------------------------------


def crowd_part(args: argparse.Namespace, part: str) -> dict[str, Any]:
    asked = questions(args.questions, max_tokens=part == "with-limit")
    with serving(args, *pool_options(args.bundle, args.contexts, args.max_context)) as server:
        expected = single_runs(server.address, asked)
        before = settled(server)
        with memory_of(server) as samples:
            outcome = run_crowd(server.address, asked, expected, clients=args.clients, seconds=args.seconds)
        after = settled(server)
    return {"part": part, **told_of(outcome), **judged(outcome, before, after, samples)}


def told_of(outcome: Outcome) -> dict[str, Any]:
    return {
        "requests": outcome.requests,
        "same": outcome.same,
        "different": len(outcome.different),
        "lost": len(outcome.lost),
        "failed": dict(outcome.failed),
        "left": outcome.left,
        "busy": outcome.busy,
        "events_per_s": round(outcome.events / outcome.seconds, 1),
        "examples": [*outcome.different[:3], *outcome.lost[:3]],
    }


def judged(
    outcome: Outcome, before: dict[str, Any], after: dict[str, Any], samples: list[tuple[float, int]]
) -> dict[str, Any]:
    growth = growth_of(samples)
    used = (in_use(before), in_use(after))
    targets = [
        {"what": "answers that equal their single run", "found": outcome.same, "met": outcome.right},
        {"what": "blocks of the cache in use, before and after", "found": used, "met": used[0] == used[1]},
        {"what": "memory after the first quarter, of its largest", "found": growth, "met": growth <= GROWTH},
    ]
    pool = {"kv_tokens": after["kv_tokens"], "rss_mb": round(max(kb for _, kb in samples) / 1000, 1)}
    return {**pool, "targets": targets}


def in_use(state: dict[str, Any]) -> int:
    """Blocks of the cache that are neither free nor only kept for prompts to come."""
    return int(state["kv_used_blocks"] - state["kv_cached_blocks"])


def settled(server: Server) -> dict[str, Any]:
    """The server's state once nothing runs or waits."""
    until = time.monotonic() + SETTLE_S
    while True:
        state: dict[str, Any] = json.loads(server.get("/page/status.json")[1])
        if not (state["running"] or state["waiting"]) or time.monotonic() > until:
            return state
        time.sleep(0.1)


@contextmanager
def memory_of(server: Server) -> Iterator[list[tuple[float, int]]]:
    """Moments and resident kB of the server while the block runs; Linux only."""
    samples, ended = [(time.perf_counter(), status_kb(server.pid, "VmRSS"))], threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            samples.append((time.perf_counter(), status_kb(server.pid, "VmRSS")))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def growth_of(samples: list[tuple[float, int]]) -> float:
    """The most memory after the first quarter of the time, over the most within it."""
    begin, end = samples[0][0], samples[-1][0]
    quarter = begin + (end - begin) / 4
    first = max(kb for at, kb in samples if at <= quarter)
    return round(max([kb for at, kb in samples if at > quarter] or [first]) / max(first, 1), 3)


# --- Fixed rates ------------------------------------------------------------------------------------------------------


def rates_part(args: argparse.Namespace) -> list[dict[str, Any]]:
    with serving(args) as server:
        run_at(server, 1e9, args.clients, 0)  # prepares kernels
        saturation = saturated(server, args)
        print(f"saturation: {saturation:.2f} requests a second", file=sys.stderr)
        rows = []
        for number, share in enumerate(SHARES, 1):
            count = max(round(saturation * share * args.rate_seconds), 1)
            replies = run_at(server, saturation * share, count, number)
            rows.append({"share": share, "requests_per_s": round(saturation * share, 2), **figures(replies)})
        return rows


def saturated(server: Server, args: argparse.Namespace) -> float:
    """Requests a second, when --clients are always in flight."""
    posts, until = iter(posted(10_000, 99)), time.perf_counter() + args.rate_seconds
    answered = list[float]()

    async def one() -> None:
        while time.perf_counter() < until:
            reply = await ask(server.address, next(posts))
            if reply.status == OK and reply.ended_at < until:
                answered.append(reply.ended_at)

    async def every() -> None:
        await asyncio.gather(*(one() for _ in range(args.clients)))

    asyncio.run(every())
    return len(answered) / float(args.rate_seconds)


def run_at(server: Server, rate: float, count: int, seed: int) -> list[Reply]:
    """Requests that arrive at random, so many a second in the mean."""
    rng = random.Random(seed)
    gaps = [rng.expovariate(rate) for _ in range(count)]
    return asyncio.run(arrive(posted(count, seed), gaps, lambda post: ask(server.address, post)))


def posted(count: int, seed: int) -> list[Post]:
    """Streams of a fixed length, each with words of its own at its beginning, so that no prompt is in the cache."""
    made = []
    for number in range(count):
        content = f"Note {seed}-{number}. Tell me about the sea, old bridges and the history of clocks."
        body = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": RATE_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        made.append(Post("/v1/chat/completions", json.dumps(body).encode()))
    return made


def figures(replies: list[Reply]) -> dict[str, Any]:
    refused = [reply for reply in replies if reply.status == BUSY]
    answers = [spoken(reply) for reply in replies if reply.status != BUSY]
    served = summed_up(0, answers)
    longest = [max(b - a for a, b in pairwise(answer.token_times)) for answer in answers]
    return {
        "requests": len(replies),
        "refused_429": len(refused),
        "tok_s": served.tokens_per_second,
        "ttft_ms_p50": served.ttft_ms_p50,
        "ttft_ms_p99": served.ttft_ms_p99,
        "gap_ms_p50": served.gap_ms_p50,
        "gap_ms_p99": served.gap_ms_p99,
        "longest_gap_ms_p50": round(1000 * percentile(longest, 50), 1),
    }


def show(report: dict[str, Any]) -> None:
    show_about(report)
    for crowd in report["crowds"]:
        show_table([{key: value for key, value in crowd.items() if key not in ("targets", "examples")}])
        show_table([{**target, "met": met_text(target["met"])} for target in crowd["targets"]])
        print(*crowd["examples"], sep="\n")
    show_table(report["rates"])


if __name__ == "__main__":
    sys.exit(main())
