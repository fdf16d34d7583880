"""What a step costs on this machine, for the simulation of a fleet (docs/fleet.md).

    python benchmarks/fleet_steps.py BUNDLE [--model NAME] [--engine openvino] [--threads 1] [--part cells|serving]
                                     [--rounds 9] [--store]

cells: the engine alone, in this process. Decode steps of 1 to 32 answers behind 32 and 512 tokens each, and prompts of
1 to 512 tokens read at once with nothing and with 512 tokens behind them. Rounds go through all cells, so that a
machine that changes meanwhile changes all of them; a cell is the median of its rounds. Decode steps of a kind are made
four at a time, as answers are written; the first after a step of another number of answers has cells of its own.
Prompts are random ids.

serving: `edge serve` with as many threads, asked over HTTP by 1 to 16 clients at once, first one server and then two of
them on this machine, each on processors of its own (taskset): OpenVINO would put both on the same. All clients of a
round begin together with prompts of 16 tokens, so that nothing but decode steps lies between two tokens: the gap is the
median of all of them after the first quarter of the answers. What it has over a decode step of the engine alone is what
serving adds. It needs the cells of the same name to be stored.

--store writes the table of that name to profiles/fleet/steps.json; otherwise it is printed. The machine has to be idle.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from report import VERSIONED, about_machine

from edge.profiles.fleet import step_costs
from edge.profiles.fleet.step_costs import Cell, Gap, MeasuredSteps
from edge.profiles.http_load import Post, Reply, ask
from edge.profiles.server_process import Server, free_port, serve_command, started
from edge.profiles.serving import completion, spoken
from edge.runtime.atomic import write_atomically
from edge.runtime.bundle import open_bundle
from edge.runtime.engines.choice import open_engine
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.errors import EdgeError, ProfileError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.machine import logical_processors
from edge.runtime.settings import EngineSettings

STORE = Path(__file__).resolve().parent.parent / "profiles" / "fleet" / step_costs.FILE
ANSWERS, BEHIND = (1, 2, 4, 8, 16, 32), (32, 512)
TOKENS, READ = (1, 8, 32, 64, 128, 256, 512), (0, 512)
CLIENTS, PROMPT, ANSWER = (1, 2, 4, 8, 16), 16, 64
SERVED_ROUNDS = 3
ALIKE = 4  # decode steps one after the other, as answers are written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--model", help="what the table is called; default: the bundle's folder")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", choices=("cells", "serving"), default="cells")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--store", action="store_true", help=f"write profiles/fleet/{step_costs.FILE}")
    args = parser.parse_args()
    args.model = args.model or args.bundle.name
    try:
        tables = list(step_costs.from_json(STORE.read_bytes())) if STORE.is_file() else []
        if args.part == "cells":
            table = measured_cells(args)
        else:
            name = f"{args.model}, {args.engine}, {args.threads} thread"
            table = measured_serving(args, step_costs.find_table(tables, name))
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    if args.store:
        kept = [one for one in tables if one.name != table.name]
        raw = step_costs.to_json(sorted([*kept, table], key=lambda one: one.name))
        write_atomically(STORE, [raw.encode()], private=False)
    print(json.dumps(asdict(table), indent=1))
    return 0


# --- The engine alone -------------------------------------------------------------------------------------------------


def measured_cells(args: argparse.Namespace) -> MeasuredSteps:
    bundle = open_bundle(args.bundle)
    engine = open_engine(bundle, EngineSettings(engine=args.engine, threads=args.threads))
    rng = np.random.default_rng(0)
    known = bundle.manifest.spec.vocab_size
    try:
        decode, first = decode_cells(engine, rng, known, args.rounds)
        prefill = prefill_cells(engine, rng, known, args.rounds)
        about = about_machine(VERSIONED)
        return MeasuredSteps(
            model=args.model,
            recipe=bundle.manifest.recipe,
            engine=args.engine,
            threads=args.threads,
            machine=about["machine"],
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            command=f"python benchmarks/fleet_steps.py BUNDLE --engine {args.engine} --threads {args.threads}",
            versions=about["versions"],
            chunk=engine.info.prefill_chunk,
            block=engine.pool.block_size,
            blocks=engine.pool.num_blocks,
            decode=decode,
            first=first,
            prefill=prefill,
            gaps=(),
            request_ms=0.0,
        )
    finally:
        engine.close()


def decode_cells(
    engine: Engine, rng: np.random.Generator, known: int, rounds: int
) -> tuple[tuple[Cell, ...], tuple[Cell, ...]]:
    """Steps of answers that are being written, and the first after a step of another number of them."""
    held = {behind: [filled(engine, rng, known, behind) for _ in range(max(ANSWERS))] for behind in BEHIND}
    first: dict[tuple[int, int], list[float]] = {}
    found: dict[tuple[int, int], list[float]] = {}
    for number in range(rounds + 1):  # the first one prepares kernels and is not counted
        for answers in ANSWERS:
            for behind, sequences in held.items():
                for repeated in range(ALIKE):
                    steps = [Step(one, rng.integers(0, known, 1)) for one in sequences[:answers]]
                    ms = timed(partial(engine.decode, steps))
                    if number and repeated:
                        found.setdefault((answers, behind), []).append(ms)
                    elif number and behind == BEHIND[0]:
                        first.setdefault((answers, behind), []).append(ms)
                for one in sequences[:answers]:
                    one.trim(behind)
    for sequence in (one for sequences in held.values() for one in sequences):
        sequence.free()
    return cells(found), cells(first)


def prefill_cells(engine: Engine, rng: np.random.Generator, known: int, rounds: int) -> tuple[Cell, ...]:
    held = {behind: filled(engine, rng, known, behind) for behind in READ}
    found: dict[tuple[int, int], list[float]] = {}
    most = engine.info.prefill_chunk
    for number in range(rounds + 1):
        for tokens in (count for count in TOKENS if count <= most):
            for behind, sequence in held.items():
                ids, wanted = rng.integers(0, known, tokens), np.array([tokens - 1])
                ms = timed(partial(engine.forward, ids, sequence, wanted))
                sequence.trim(behind)
                if number:
                    found.setdefault((tokens, behind), []).append(ms)
    for sequence in held.values():
        sequence.free()
    return cells(found)


def filled(engine: Engine, rng: np.random.Generator, known: int, tokens: int) -> CacheSequence:
    """A sequence with so many tokens of its own."""
    sequence = CacheSequence(engine.pool)
    while left := tokens - sequence.num_tokens:
        count = min(left, engine.info.prefill_chunk)
        engine.forward(rng.integers(0, known, count), sequence, np.array([count - 1]))
    return sequence


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def cells(found: dict[tuple[int, int], list[float]]) -> tuple[Cell, ...]:
    return tuple(Cell(count, past, *spread(values)) for (count, past), values in sorted(found.items()))


def spread(values: Sequence[float]) -> tuple[float, float, float, int]:
    return round(statistics.median(values), 4), round(min(values), 4), round(max(values), 4), len(values)


# --- Over HTTP --------------------------------------------------------------------------------------------------------


def measured_serving(args: argparse.Namespace, table: MeasuredSteps) -> MeasuredSteps:
    rng = np.random.default_rng(1)
    known = open_bundle(args.bundle).manifest.spec.vocab_size
    costs = table.costs()
    gaps: dict[tuple[int, int], list[float]] = {}
    requests: list[float] = []
    with ExitStack() as stack:
        servers: list[Server] = []
        for number in range(2):
            servers.append(stack.enter_context(served(args.bundle, args.engine, args.threads, number)))
        for number in range(SERVED_ROUNDS + 1):
            for count in (1, 2):
                for clients in CLIENTS if number else CLIENTS[:2]:  # the first round is not counted
                    prompts = [rng.integers(0, known, PROMPT).tolist() for _ in range(clients * count)]
                    posts = [completion(prompt, ANSWER, ids=True) for prompt in prompts]
                    replies = asyncio.run(at_once(servers[:count], posts))
                    if number:
                        gaps.setdefault((clients, count), []).append(gap_ms(replies))
                    if number and clients == count == 1:
                        (answer,) = map(spoken, replies)
                        requests.append(1000 * (answer.token_times[0] - answer.sent_at) - costs.prefill_ms(PROMPT, 0))
    behind = PROMPT + 5 * ANSWER // 8  # the middle of what is counted
    found = [Gap(clients, count, behind, *spread(values)) for (clients, count), values in sorted(gaps.items())]
    return replace(table, gaps=tuple(found), request_ms=round(max(statistics.median(requests), 0.0), 3))


def served(bundle: Path, engine: str, threads: int, number: int) -> AbstractContextManager[Server]:
    """A server on processors of its own, the n-th of this machine, as far as there are any."""
    port = free_port()
    options = ("--engine", engine, "--threads", str(threads), "--self-test", "off")
    command = serve_command(str(bundle), port, *options)
    first, last = number * threads, (number + 1) * threads - 1
    own = ["taskset", "--cpu-list", f"{first}-{last}"] if last < logical_processors() else []
    return started([*own, *command], port)


async def at_once(servers: Sequence[Server], posts: Sequence[Post]) -> list[Reply]:
    """As many to each server."""
    return await asyncio.gather(*(ask(servers[i % len(servers)].address, post) for i, post in enumerate(posts)))


def gap_ms(replies: Sequence[Reply]) -> float:
    found: list[float] = []
    for answer in map(spoken, replies):
        if answer.tokens != ANSWER:
            raise ProfileError(f"an answer has {answer.tokens} tokens, {ANSWER} were asked for")
        times = answer.token_times[ANSWER // 4 :]
        found += [b - a for a, b in pairwise(times)]
    return 1000 * statistics.median(found)


if __name__ == "__main__":
    sys.exit(main())
