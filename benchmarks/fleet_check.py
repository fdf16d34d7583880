"""What the simulation of a fleet predicts for one and two replicas, held against real ones (docs/fleet.md).

    python benchmarks/fleet_check.py BUNDLE [--model NAME] [--engine openvino] [--threads 1] [--replicas 1,2]
                                     [--rules prefix,round-robin] [--seconds 20] [--rate 0.8] [--clients 8] [--json]

Every run is simulated first, with the step costs in profiles/fleet/steps.json, and then made: servers of this machine
(`edge serve`, each with as many threads), and conversations of three turns over HTTP, whose prompts are token ids that
share a system prompt of 200. The same seed gives the simulation and the servers the same conversations, lengths and
pauses, and the same code chooses the replica of a request (profiles/fleet/routing.py), in the process that asks.

closed: --clients clients for each replica, with pauses of half a second in the mean. open: conversations begin at
--rate a second for each replica, whether or not earlier ones are over. Every cache begins empty.

The target is 20 % for tokens a second, for the mean time to the first token, and for the mean speed of an answer.
"stored" is predicted with the step costs as they are stored, "now" with the same costs times two factors, which a probe
measures on the running servers before and after the run: the gap of four answers, and the time of a prompt of 256
tokens, over what is stored. A shared machine is not as fast in one minute as in the next. The error that is judged is
that of "now"; nothing of the run itself goes into it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from fleet_steps import at_once, served
from report import about, put_out, show_about, show_table

from edge.profiles.fleet import step_costs
from edge.profiles.fleet.result import Result, result_of
from edge.profiles.fleet.routing import Router
from edge.profiles.fleet.simulation import Plan, simulate
from edge.profiles.fleet.step_costs import MeasuredSteps, StepCosts
from edge.profiles.fleet.workload import Ask, Conversation, Lengths, Workload, conversations
from edge.profiles.http_load import Reply
from edge.profiles.http_load import ask as post
from edge.profiles.server_process import Server
from edge.profiles.serving import completion, spoken
from edge.runtime.bundle import open_bundle
from edge.runtime.errors import EdgeError, ProfileError
from edge.runtime.json_reader import parse_json

WITHIN = 0.20
PROBE_CLIENTS, PROBE_PROMPT, PROBE_ANSWER = 4, 16, 48
PROBE_READ, PROBE_READS = 256, 3
SYSTEM_TOKENS, TURNS, THINK_S = 200, 3, 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--model", help="of the stored table; default: the bundle's folder")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--replicas", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2])
    parser.add_argument("--rules", type=lambda text: text.split(","), default=["prefix", "round-robin"])
    parser.add_argument("--loads", type=lambda text: text.split(","), default=["closed", "open"])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=0.8, help="conversations a second for each replica, where open")
    parser.add_argument("--clients", type=int, default=8, help="for each replica, where closed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        name = f"{args.model or args.bundle.name}, {args.engine}, {args.threads} thread"
        table = step_costs.find_table(step_costs.stored(), name)
        report = about(args.bundle)
        report["rows"] = run(args, table)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    report["met"] = all(abs(row["error"]) <= WITHIN for row in report["rows"])
    put_out(report, show, as_json=args.json)
    return 0 if report["met"] else 1


def run(args: argparse.Namespace, table: MeasuredSteps) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    known = open_bundle(args.bundle).manifest.spec.vocab_size
    for count in args.replicas:
        for load in args.loads:
            for rule in args.rules if count > 1 else args.rules[:1]:
                workload = workload_of(args, load, count)
                plan = Plan(table.costs(), workload, count, rule, args.seconds, seed=args.seed, per_machine=count)
                stored = foreseen(plan)
                with ExitStack() as stack:  # fresh servers: every cache begins empty
                    servers = [
                        stack.enter_context(served(args.bundle, args.engine, args.threads, n)) for n in range(count)
                    ]
                    for server in servers:
                        speed_of(server, known, plan.costs)  # the first time, kernels are prepared
                    speeds = [speed_of(server, known, plan.costs) for server in servers]
                    asks = asyncio.run(Crowd(servers, plan, known).held())
                    speeds += [speed_of(server, known, plan.costs) for server in servers]
                seen = whole_run(asks, 0.0)
                decode, prefill = (statistics.fmean(values) for values in zip(*speeds, strict=True))
                now = foreseen(replace(plan, costs=plan.costs.times(decode, prefill)))
                what = {"replicas": count, "load": load, "rule": rule if count > 1 else "-", "requests": seen.asked}
                for (figure, one), (_, other), (_, real) in zip(*map(figures, (stored, now, seen)), strict=True):
                    rows.append(
                        {**what, "figure": figure, "stored": one, "stored error": one / real - 1}
                        | {"now": other, "error": other / real - 1, "real": real}
                    )
                told = {"hits": [stored.hits, seen.hits], "of turns": [stored.turn_hits, seen.turn_hits]}
                told |= {"decode, prefill now": [decode, prefill]}
                print(
                    what, {key: [round(value, 3) for value in values] for key, values in told.items()}, file=sys.stderr
                )
    return rows


def foreseen(plan: Plan) -> Result:
    return whole_run(simulate(plan).asks, plan.costs.request_ms / 1000)


def workload_of(args: argparse.Namespace, load: str, replicas: int) -> Workload:
    lengths = {"user": Lengths(32, 96), "answer": Lengths(32, 96)}
    closed = load == "closed"
    return Workload(
        clients=args.clients * replicas if closed else 0,
        conversations_s=0.0 if closed else args.rate * replicas,
        turns=TURNS,
        think_s=THINK_S,
        system_tokens=SYSTEM_TOKENS,
        **lengths,
    )


def figures(found: Result) -> list[tuple[str, float]]:
    return [
        ("tok/s", found.tokens_s),
        ("TTFT, ms", 1000 * found.ttft_s.mean),
        ("tok/s of an answer", found.rate.mean),
    ]


def whole_run(asks: Sequence[Ask], request_s: float) -> Result:
    """From the first request to the last token. request_s: what serving adds to the time to the first token."""
    for ask in asks:
        if ask.first_s is not None:
            ask.first_s += request_s
    ends = [ask.ended_s for ask in asks if ask.ended_s is not None]
    return result_of(asks, max(ends) - min(ask.arrived_s for ask in asks))


# --- Real replicas ----------------------------------------------------------------------------------------------------


class Crowd:
    """The clients of a plan, and the router before its replicas."""

    def __init__(self, servers: Sequence[Server], plan: Plan, known: int) -> None:
        self._servers, self._plan, self._known = servers, plan, known
        self._router = Router(plan.rule, len(servers), plan.seed)
        self._loads = np.zeros(len(servers), np.int64)
        self._began = time.perf_counter()
        self._system = random.Random("system").choices(range(known), k=plan.workload.system_tokens)
        self.asks: list[Ask] = []

    @property
    def now(self) -> float:
        return time.perf_counter() - self._began

    async def held(self) -> list[Ask]:
        workload, seed = self._plan.workload, self._plan.seed
        if workload.clients:
            await asyncio.gather(*(self._client(client) for client in range(workload.clients)))
            return self.asks
        talks = []
        due = 0.0
        for conversation in conversations(workload, seed):
            due += conversation.gap_s
            if due >= self._plan.until_s:
                break
            await asyncio.sleep(max(due - self.now, 0.0))
            talks.append(asyncio.ensure_future(self._talk(conversation)))
        await asyncio.gather(*talks)
        return self.asks

    async def _client(self, client: int) -> None:
        for conversation in conversations(self._plan.workload, self._plan.seed, client):
            await asyncio.sleep(conversation.pause_s)
            if self.now >= self._plan.until_s:
                return
            await self._talk(conversation)

    async def _talk(self, conversation: Conversation) -> None:
        rng = random.Random(conversation.number)
        ids, before = list(self._system), 0
        for turn in conversation.turns:
            await asyncio.sleep(turn.think_s)
            if self.now >= self._plan.until_s:
                return
            ids += rng.choices(range(self._known), k=turn.user_tokens)
            ask = Ask(conversation.number, conversation.key, len(self._system), len(ids), turn.answer_tokens, self.now)
            ask.earlier_tokens = before
            ids += await self._ask(ask, ids)
            before = len(ids)

    async def _ask(self, ask: Ask, ids: Sequence[int]) -> list[int]:
        chosen = ask.replica = self._router.choose(ask.key, self._loads, int(self._loads.sum()))
        self._loads[chosen] += 1
        self.asks.append(ask)
        try:
            reply = await post(self._servers[chosen].address, completion(ids, ask.answer_tokens, ids=True))
        finally:
            self._loads[chosen] -= 1
        answer = spoken(reply)
        ask.first_s, ask.ended_s = answer.token_times[0] - self._began, answer.token_times[-1] - self._began
        ask.produced, ask.outcome = answer.tokens, "answered"
        found, ask.cached_tokens = ids_of(reply)
        if len(found) != ask.answer_tokens:
            raise ProfileError(f"an answer has {len(found)} tokens, {ask.answer_tokens} were asked for")
        return found


def ids_of(reply: Reply) -> tuple[list[int], int]:
    """The ids of an answer, and how many of its prompt's tokens were cached."""
    found: list[int] = []
    cached = 0
    for event in reply.events:
        if event.data == b"[DONE]":
            continue
        message = parse_json(event.data, "an event", ProfileError, "look at the server's log")
        match message:
            case {"choices": [{"token_ids": [*ids]}, *_]}:
                found += ids
        match message:
            case {"usage": {"prompt_tokens_details": {"cached_tokens": int(count)}}}:
                cached = count
    return found, cached


def speed_of(server: Server, known: int, costs: StepCosts) -> tuple[float, float]:
    """How long a decode step of four answers and a prompt take now, in times of what is stored."""
    rng = random.Random(time.perf_counter_ns())

    def prompt(tokens: int) -> list[int]:
        return rng.choices(range(known), k=tokens)

    posts = [completion(prompt(PROBE_PROMPT), PROBE_ANSWER, ids=True) for _ in range(PROBE_CLIENTS)]
    answers = [spoken(reply) for reply in asyncio.run(at_once([server], posts))]
    times = [answer.token_times[PROBE_ANSWER // 4 :] for answer in answers]
    gap = 1000 * statistics.median([b - a for one in times for a, b in pairwise(one)])
    read = []
    for _ in range(PROBE_READS):
        (answer,) = map(spoken, asyncio.run(at_once([server], [completion(prompt(PROBE_READ), 1, ids=True)])))
        read.append(1000 * (answer.token_times[0] - answer.sent_at))
    behind = PROBE_CLIENTS * (PROBE_PROMPT + 5 * PROBE_ANSWER // 8)
    usual = costs.prefill_ms(PROBE_READ, 0) + costs.request_ms
    return gap / costs.decode_ms(PROBE_CLIENTS, behind), statistics.median(read) / usual


def show(report: dict[str, Any]) -> None:
    show_about(report)
    shown = {"stored": "{:.1f}", "now": "{:.1f}", "real": "{:.1f}", "error": "{:+.1%}", "stored error": "{:+.1%}"}
    show_table([{**row, **{key: form.format(row[key]) for key, form in shown.items()}} for row in report["rows"]])
    print(f"all within {WITHIN:.0%}: {'yes' if report['met'] else 'no'}")


if __name__ == "__main__":
    sys.exit(main())
