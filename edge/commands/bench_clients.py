"""`edge bench --clients`: every engine of a bundle behind a server of its own, asked over HTTP by several clients.

In: the arguments of `edge bench`, an open bundle and its settings. Out: tables or JSON, and which engine is right for
how many clients on this machine. Each client sends two requests, one after the other; prompts are seeded random ids.
Figures are medians of repeats, each with all clients.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.commands.console import print_json, print_table
from edge.profiles.server_process import free_port, serve_command, started
from edge.profiles.serving import measure_clients
from edge.profiles.spread import MEANING, is_noisy, median, noise_warning, spread, with_spread
from edge.runtime.bundle import TOKENIZER, Bundle
from edge.runtime.engines.choice import choose, engines_for
from edge.runtime.engines.limits import context_limit
from edge.runtime.errors import ContextLengthError
from edge.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edge.runtime.settings import EngineSettings

REQUESTS = 2  # of each client
WARM_TOKENS = 2  # of the answers of a first run, which prepares kernels
COLUMNS = ["engine", "prompt", "clients", "tok/s", "TTFT ms", "TTFT p99", "gap ms", "gap p99"]
FIGURES = ("tokens_per_second", "ttft_ms_p50", "ttft_ms_p99", "gap_ms_p50", "gap_ms_p99")  # of each repeat
SPARE = ("prompt", "gap p99", "TTFT p99", "gap ms")


def compare_servers(args: argparse.Namespace, bundle: Bundle, settings: EngineSettings) -> int:
    """Measure, and print. Raises ContextLengthError, and ProfileError when a server does not do as it should."""
    context, most = context_limit(settings, bundle.manifest.spec), max(args.prompt_tokens) + args.new_tokens
    if most > context:
        raise ContextLengthError(
            f"prompt and answer have {most:,} tokens: the context holds {context:,}; ask for fewer"
        )
    named = args.engine not in ("auto", "all")
    engines = [args.engine] if named else engines_for(bundle, settings.device)
    servers = [_measured(args, bundle, settings, engine) for engine in engines]
    verdicts = [] if named else list(_verdicts(bundle, settings, servers))
    if args.json:
        print_json({"bundle": args.bundle, "servers": servers, "verdicts": verdicts})
        _warn(servers)
        return 0
    for server in servers:
        print(f"{args.bundle} with engine {server['engine']}: ready after {server['ready_s']:.2f} s")
    rows = (_row(server["engine"], found) for server in servers for found in server["results"])
    print_table(COLUMNS, rows, spare=SPARE, elsewhere="--json has all")
    print("one repeat has no spread" if args.repeat == 1 else f"{MEANING}, of {args.repeat}")
    for verdict in verdicts:
        auto, fastest = verdict["auto"], verdict["fastest"]
        told = "which is right here" if auto == fastest else f"and {fastest} is faster here"
        print(f"prompt of {verdict['prompt_tokens']}, clients {verdict['clients']}: auto takes {auto}, {told}")
    _warn(servers)
    return 0


def _warn(servers: Sequence[dict[str, Any]]) -> None:
    """A line on stderr where repeats are too far apart."""
    noisy = [
        f"tok/s of {server['engine']} with {found['clients']} clients"
        for server in servers
        for found in server["results"]
        if is_noisy(found["tokens_per_second"], found["tokens_per_second_spread"])
    ]
    if noisy:
        print(f"edge: {noise_warning(noisy)}", file=sys.stderr)


def _measured(args: argparse.Namespace, bundle: Bundle, settings: EngineSettings, engine: str) -> dict[str, Any]:
    """One server from its start to its end."""
    path = bundle.file(TOKENIZER)
    rng, known = np.random.default_rng(0), Tokenizer(path).num_tokens if path else bundle.manifest.spec.vocab_size
    port, begun = free_port(), time.perf_counter()
    with started(serve_command(str(args.bundle), port, *_options(settings, engine)), port) as server:
        ready_s, results = time.perf_counter() - begun, list[dict[str, Any]]()
        for tokens in args.prompt_tokens:
            for clients in args.clients:
                repeats = []
                for new_tokens in (min(WARM_TOKENS, args.new_tokens), *([args.new_tokens] * args.repeat)):
                    prompts = rng.integers(0, known, (clients, REQUESTS, tokens)).tolist()
                    tasks = [[(prompt, new_tokens) for prompt in of_client] for of_client in prompts]
                    repeats.append(asdict(measure_clients(server.address, tasks, ids=True)))
                results.append({"prompt_tokens": tokens, "new_tokens": args.new_tokens, **_summed_up(repeats[1:])})
    return {"engine": engine, "ready_s": round(ready_s, 3), "results": results}


def _summed_up(repeats: list[dict[str, Any]]) -> dict[str, Any]:
    """The median and the spread of each figure, and all repeats."""
    found = {"clients": repeats[0]["clients"], "tokens": repeats[0]["tokens"]}
    for name in FIGURES:
        samples = [repeat[name] for repeat in repeats]
        found |= {name: median(samples), f"{name}_spread": spread(samples)}
    return {**found, "repeats": repeats}


def _options(settings: EngineSettings, engine: str) -> Iterator[str]:
    """The settings as words of `edge serve`'s command line."""
    given = {
        "--engine": engine,
        "--device": settings.device,
        "--max-context": settings.max_context,
        "--kv-cache-share": settings.kv_cache_share,
        "--max-memory": None if settings.max_memory_bytes is None else f"{settings.max_memory_bytes}B",
        "--kv-precision": settings.kv_precision,
        "--threads": settings.threads,
    }
    if settings.kv_cache_share is None:
        given["--kv-cache-gb"] = settings.kv_cache_bytes / 1e9
    for name, value in given.items():
        if value is not None:
            yield from (name, str(value))
    if settings.reproducible:
        yield "--reproducible"


def _verdicts(bundle: Bundle, settings: EngineSettings, servers: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each number of clients, what auto takes and which engine was fastest."""
    for index, result in enumerate(servers[0]["results"]):
        speeds = {server["engine"]: server["results"][index]["tokens_per_second"] for server in servers}
        tokens, clients = result["prompt_tokens"], result["clients"]
        expected = replace(settings, engine="auto", expected_prompt_tokens=tokens, expected_clients=clients)
        fastest = max(speeds, key=lambda engine: speeds[engine])
        yield {
            "prompt_tokens": tokens,
            "clients": clients,
            "auto": choose(bundle, expected),
            "fastest": fastest,
        }


def _row(engine: str, found: dict[str, Any]) -> list[object]:
    return [
        engine,
        found["prompt_tokens"],
        found["clients"],
        *(with_spread(found[name], found[f"{name}_spread"], 1) for name in FIGURES),
    ]
