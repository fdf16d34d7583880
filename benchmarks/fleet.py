"""A fleet of 10 to 10,000 replicas, simulated from measured steps: waits, cache hits by rule of routing, a lost rack.

    python benchmarks/fleet.py [--table "demo openvino 1"] [--replicas 10,100,1000,10000] [--rules prefix,two-choices]
                               [--clients 12] [--seconds 30] [--warm 30] [--lost SHARE] [--slack 1.5] [--least 8]
                               [--seed 0] [--json]

--clients clients for each replica hold conversations of six turns with pauses of ten seconds in the mean: a system
prompt of 400 tokens that is the same for all, questions of 32 to 160 tokens, answers of 32 to 224. Counted are requests
that come in --seconds after --warm. Every replica is a machine of its own. With --lost, that share of all replicas, at
least one, is lost when counting begins and is back after half of it with empty caches; answers that have begun go on
elsewhere.

What is asked for is drawn from the seed, client by client, so that rules are compared on the same questions. Nothing is
timed but the simulation itself, so the machine need not be idle.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

from report import put_out, show_table

from edge.profiles.fleet import step_costs
from edge.profiles.fleet.failures import Outage
from edge.profiles.fleet.routing import RULES
from edge.profiles.fleet.simulation import Plan, Run, simulate
from edge.profiles.fleet.workload import Lengths, Workload
from edge.profiles.serving import percentile
from edge.runtime.errors import EdgeError
from edge.runtime.rendezvous import LEAST, SLACK

TURNS, THINK_S, SYSTEM_TOKENS = 6, 10.0, 400
USER, ANSWER = Lengths(32, 160), Lengths(32, 224)
PIECES = 6  # of the window, in which a lost rack is looked at


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default="demo openvino 1 thread", help="words of a stored table's name")
    parser.add_argument("--replicas", type=numbers, default=[10, 100, 1000, 10_000])
    parser.add_argument("--rules", type=lambda text: text.split(","), default=list(RULES))
    parser.add_argument("--clients", type=numbers, default=[12], help="for each replica")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--warm", type=float, default=30.0)
    parser.add_argument("--lost", type=float, metavar="SHARE")
    parser.add_argument("--slack", type=float, default=SLACK)
    parser.add_argument("--least", type=int, default=LEAST)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        table = step_costs.find_table(step_costs.stored(), args.table)
        report: dict[str, Any] = {"table": table.name, "machine": table.machine, "rows": [], "pieces": []}
        for count in args.replicas:
            for clients in args.clients:
                for rule in args.rules:
                    row, pieces = one_run(args, table.costs(), count, clients, rule)
                    report["rows"].append(row)
                    report["pieces"] += pieces
                    print(row, file=sys.stderr)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    put_out(report, show, as_json=args.json)
    return 0


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def one_run(
    args: argparse.Namespace, costs: step_costs.StepCosts, count: int, clients: int, rule: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    outage = None if args.lost is None else Outage(args.warm, args.lost, args.seconds / 2)
    workload = Workload(count * clients, 0.0, TURNS, THINK_S, SYSTEM_TOKENS, USER, ANSWER)
    plan = Plan(
        costs,
        workload,
        count,
        rule,
        args.seconds,
        args.warm,
        args.seed,
        slack=args.slack,
        least=args.least,
        outage=outage,
    )
    began = time.perf_counter()
    run = simulate(plan)
    took = time.perf_counter() - began
    found = run.result
    row = {
        "replicas": count,
        "clients": clients,
        "rule": rule,
        "requests": found.asked,
        "wait p50": ms(found.wait_s.p50),
        "p95": ms(found.wait_s.p95),
        "p99": ms(found.wait_s.p99),
        "TTFT p50": ms(found.ttft_s.p50),
        "TTFT p95": ms(found.ttft_s.p95),
        "TTFT p99": ms(found.ttft_s.p99),
        "tok/s": round(found.rate.p50, 1),
        "slow tok/s": round(found.slow_rate, 1),
        "tok/s of each": round(found.tokens_s / count, 1),
        "hits": round(found.hits, 3),
        "of turns": round(found.turn_hits, 3),
        "busy": round(run.busy, 3),
        "refused": found.refused,
        "broken": found.broken,
        "moved": found.moved,
        "took s": round(took, 1),
        "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    return row, [] if outage is None else in_pieces(plan, run, row)


def ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


def in_pieces(plan: Plan, run: Run, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The time to the first token, piece by piece of the window, and in one of equal length before it."""
    width = plan.seconds / PIECES
    rows = []
    for number in range(-1, PIECES):
        begin = plan.warm_s + number * width
        asks = [ask for ask in run.asks if begin <= ask.arrived_s < begin + width and ask.outcome == "answered"]
        first: Sequence[float] = [ask.first_s - ask.arrived_s for ask in asks if ask.first_s is not None]
        prompts = sum(ask.earlier_tokens for ask in asks)
        cached = sum(min(ask.cached_tokens, ask.earlier_tokens) for ask in asks)
        rows.append(
            {
                "replicas": row["replicas"],
                "rule": row["rule"],
                "seconds": f"{number * width:+.0f} to {(number + 1) * width:+.0f}",
                "requests": len(asks),
                "TTFT p50": ms(percentile(first, 50)) if first else 0.0,
                "TTFT p95": ms(percentile(first, 95)) if first else 0.0,
                "TTFT p99": ms(percentile(first, 99)) if first else 0.0,
                "of turns": round(cached / prompts, 3) if prompts else 0.0,
            }
        )
    return rows


def show(report: dict[str, Any]) -> None:
    print(f"steps of {report['table']}, measured on {report['machine']}")
    show_table(report["rows"])
    if report["pieces"]:
        print("seconds from the loss")
        show_table(report["pieces"])


if __name__ == "__main__":
    sys.exit(main())
