"""What HTTP adds to an answer: tok/s of one client, time to the first byte under load, first token after a prefix.

    python benchmarks/serving_overhead.py BUNDLE [--part speed|first-byte|prefix]... [--engine auto] [--rounds 15]
                                          [--prompt-tokens 64] [--new-tokens 128] [--clients 8] [--json]

speed: the same prompts, never twice, in this process as `edge run` answers them, its text written and flushed piece by
piece, and over HTTP by a warm server; alternately, as pairs. tok/s are those of the whole answer, its prompt included.
Target: at least 0.95 of what this process does.

first-byte: while --clients clients ask one thing after the other, prompts of 512 tokens and answers of 64, a stream is
asked for every 100 ms: the time from its connect to the end of the headers. Target: 50 ms at the 99th percentile.

prefix: a system message of about 1,000 tokens is kept in a file, which this process and a server load. Questions that
differ, alternately here and there: the time to the first text. Target: at most 20 ms more over HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from crowd import BUSY
from report import about, met_text, put_out, ratio_text, show_about, show_table, spread
from texts import text_ids, tokenizer_of

import edge
from edge.profiles.http_load import Post, Reply, arrive, ask, run_clients
from edge.profiles.server_process import Server, free_port, serve_command, started
from edge.profiles.serving import OK, completion, percentile, spoken
from edge.runtime.errors import EdgeError, ProfileError
from edge.runtime.stream import Stream

PARTS = ("speed", "first-byte", "prefix")
SPEED, FIRST_BYTE_MS, PREFIX_MS = 0.95, 50.0, 20.0
LONG_PROMPT, LONG_ANSWER = 512, 64
PROBES, PROBE_EVERY_S, PROBE_PROMPT = 100, 0.1, 128
PREFIX_TOKENS = 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--clients", type=int, default=8, help="while first bytes are timed")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    parts = {"speed": speed, "first-byte": first_byte, "prefix": prefix}
    try:
        report = about(args.bundle)
        report["settings"] = {
            name: getattr(args, name) for name in ("engine", "rounds", "prompt_tokens", "new_tokens", "clients")
        }
        report["parts"] = {name: parts[name](args) for name in args.part or PARTS}
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    put_out(report, show, as_json=args.json)
    return 0


def serving(args: argparse.Namespace, engine: str, *options: str) -> Any:
    port = free_port()
    return started(serve_command(str(args.bundle), port, "--engine", engine, *options), port)


# --- Speed ------------------------------------------------------------------------------------------------------------


def speed(args: argparse.Namespace) -> dict[str, Any]:
    llm = edge.load(args.bundle, engine=args.engine)
    rounds = args.rounds + 1  # the first prepares kernels
    ids = text_ids(args.bundle, 2 * rounds * args.prompt_tokens)
    prompts = [ids[i : i + args.prompt_tokens] for i in range(0, len(ids), args.prompt_tokens)]
    here, there = list[float](), list[float]()
    with serving(args, llm.engine.info.name) as server:
        for number in range(rounds):
            ours, theirs = prompts[2 * number : 2 * number + 2]
            for is_here in (True, False) if number % 2 else (False, True):
                if is_here:
                    here.append(args.new_tokens / seconds_here(llm, ours, args.new_tokens))
                else:
                    there.append(args.new_tokens / seconds_there(server, theirs, args.new_tokens))
    here, there = here[1:], there[1:]
    ratio = spread([b / a for a, b in zip(here, there, strict=True)])
    return {
        "engine": llm.engine.info.name,
        "here_tok_s": round(statistics.median(here), 1),
        "http_tok_s": round(statistics.median(there), 1),
        "ratio": ratio,
        "target": SPEED,
        "met": ratio["median"] >= SPEED,
    }


def seconds_here(llm: edge.LLM, ids: list[int], new_tokens: int) -> float:
    """As `edge run` does: every piece of text is written at once."""
    begun = time.perf_counter()
    with Path(os.devnull).open("w", encoding="utf-8") as out:
        for chunk in llm.generate(ids, max_new_tokens=new_tokens, ignore_stop_ids=True):
            out.write(chunk.text)
            out.flush()
    return time.perf_counter() - begun


def seconds_there(server: Server, ids: list[int], new_tokens: int) -> float:
    [[reply]] = run_clients(server.address, [[completion(ids, new_tokens)]])
    answer = spoken(reply)
    if answer.tokens != new_tokens:
        raise ProfileError(f"an answer of {answer.tokens} tokens, expected {new_tokens}")
    return answer.token_times[-1] - answer.sent_at


# --- The first byte ---------------------------------------------------------------------------------------------------


def first_byte(args: argparse.Namespace) -> dict[str, Any]:
    ids = text_ids(args.bundle, 40_000)
    starts = count(0, 7)  # prompts differ from their first token on

    def prompt(tokens: int) -> list[int]:
        start = next(starts) % (len(ids) - tokens)
        return ids[start : start + tokens]

    with serving(args, args.engine) as server:
        run_clients(server.address, [[completion(prompt(PROBE_PROMPT), 4)]] * args.clients)
        probes = asyncio.run(probed(server, args.clients, prompt))
    times = [1000 * (reply.head_at - reply.sent_at) for reply in probes if reply.status == OK and reply.head_at]
    if not times:
        raise ProfileError(f"no stream was begun: {[reply.status for reply in probes[:5]]}")
    p99 = round(percentile(times, 99), 1)
    return {
        "probes": len(probes),
        "refused_429": sum(reply.status == BUSY for reply in probes),
        "first_byte_ms_p50": round(percentile(times, 50), 1),
        "first_byte_ms_p99": p99,
        "first_byte_ms_max": round(max(times), 1),
        "target": FIRST_BYTE_MS,
        "met": p99 < FIRST_BYTE_MS,
    }


async def probed(server: Server, clients: int, prompt: Any) -> list[Reply]:
    """Begin a stream now and then while the others keep the engine busy; each hangs up after its first event."""
    ended = asyncio.Event()

    async def busy() -> None:
        while not ended.is_set():
            await ask(server.address, completion(prompt(LONG_PROMPT), LONG_ANSWER))

    others = [asyncio.ensure_future(busy()) for _ in range(clients)]
    await asyncio.sleep(1)
    posts = [completion(prompt(PROBE_PROMPT), 4) for _ in range(PROBES)]
    leaving = [Post(post.path, post.body, leave_after=1) for post in posts]
    replies = await arrive(leaving, [PROBE_EVERY_S] * PROBES, lambda post: ask(server.address, post))
    ended.set()
    await asyncio.gather(*others)
    return replies


# --- After a prefix ---------------------------------------------------------------------------------------------------


def prefix(args: argparse.Namespace) -> dict[str, Any]:
    llm = edge.load(args.bundle, engine=args.engine)
    system = tokenizer_of(args.bundle).decode(text_ids(args.bundle, PREFIX_TOKENS))
    here, there = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "guide.prefix"
        llm.prefixes.save(llm.system_prefix(system), file, system=system)
        llm.clear_cache()
        llm.prefixes.load(file)
        with serving(args, llm.engine.info.name, "--prefix", str(file)) as server:
            for number in range(args.rounds + 1):
                for is_here in (True, False) if number % 2 else (False, True):
                    side = "here" if is_here else "there"
                    messages = [
                        {"role": "system", "content": system},
                        {"role": "user", "content": f"Question {number} {side}: what is a list?"},
                    ]
                    if is_here:
                        here.append(first_text_ms(llm.chat(messages, max_new_tokens=8)))
                    else:
                        there.append(first_text_over_http_ms(server, messages))
    more = spread([b - a for a, b in zip(here[1:], there[1:], strict=True)])
    return {
        "engine": llm.engine.info.name,
        "here_ms": round(statistics.median(here[1:]), 1),
        "http_ms": round(statistics.median(there[1:]), 1),
        "more_ms": more,
        "target": PREFIX_MS,
        "met": more["median"] <= PREFIX_MS,
    }


def first_text_ms(stream: Stream) -> float:
    begun, first = time.perf_counter(), 0.0
    for chunk in stream:
        if chunk.text and not first:
            first = time.perf_counter()
    return 1000 * (first - begun)


def first_text_over_http_ms(server: Server, messages: list[dict[str, str]]) -> float:
    body = {
        "messages": messages,
        "max_tokens": 8,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    [[reply]] = run_clients(server.address, [[Post("/v1/chat/completions", json.dumps(body).encode())]])
    answer = spoken(reply)
    return 1000 * (answer.token_times[0] - answer.sent_at)


def show(report: dict[str, Any]) -> None:
    show_about(report)
    for name, part in report["parts"].items():
        print(name)
        show_table([dict(shown(part))])


def shown(part: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in part.items():
        yield key, met_text(value) if key == "met" else ratio_text(value) if isinstance(value, dict) else value


if __name__ == "__main__":
    sys.exit(main())
