"""What several answers at once gain over one, whether they stay the same, and how a long prompt delays others.

    python benchmarks/batching.py BUNDLE [--engine openvino|onnx] [--sequences 1,2,4,8,16] [--prompt-tokens 64]
                                  [--new-tokens 48] [--rounds 3] [--json]

Everything runs in two settings, reproducible and plain (the engine's fastest kernels), with an empty prefix cache and
prompts of random ids, greedily and past stop ids. ONNX Runtime shares steps in the plain setting only; reproducible
answers take turns.

Throughput: k requests are submitted at once and the scheduler is driven step by step. tok/s are those of decode: all
tokens after the moment when every request has its first, divided by the time from then until the last request ends.
"with prefill" counts all tokens and the whole time. Rounds go through the settings and through k in a rotating order. A
ratio compares k requests with one alone in the same round, "of one" in the same setting, "of the fastest one" with the
better of the two settings; shown are the median of the rounds, the lowest and the highest. "as alone" is how many
requests got the ids they get alone, over all rounds; the largest k goes through LLM.generate_batch as well.

Fairness: a short prompt arrives in an idle engine ("alone"), while a prompt of 2,000 tokens is being read ("while a
long prompt is read"), and while four answers are being written as well ("and four others decode"). The time to the
first token counts from the request. "longest gap" is the longest time between two tokens of the four while the long
prompt is read, "usual gap" the median before it arrives.

Targets: 8 requests at least 4.0 times as fast as one alone where they share steps, and reproducible answers as alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from report import about, met_text, put_out, ratio_text, show_about, show_table, spread

import edge
from edge.runtime.errors import EdgeError
from edge.runtime.stream import Stream

SETTINGS = {"reproducible": True, "plain": False}
SHARES = {"openvino": ("reproducible", "plain"), "onnx": ("plain",)}  # settings in which requests share steps
TARGET_SEQUENCES, TARGET = 8, 4.0
MAX_CONTEXT = 4096
LONG_TOKENS, SHORT_TOKENS, RUNNING = 2000, 16, 4
SETTLED_STEPS = 12  # of the running answers, before a long prompt arrives
READ_STEPS = 4  # of the long prompt, before the short one arrives

Prompt = list[int]


class Batch(NamedTuple):
    """The answers to some requests at once, and their speed."""

    ids: list[list[int]]
    decode_tok_s: float
    whole_tok_s: float


class Fairness(NamedTuple):
    """Milliseconds."""

    short_alone: float
    short_beside_long: float
    short_beside_all: float
    long_alone: float
    long_beside_all: float
    usual_gap: float
    longest_gap: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", choices=SHARES, default="openvino")
    parser.add_argument("--sequences", type=counts, default=[1, 2, 4, 8, 16])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        report = about(args.bundle)
        report["settings"] = {name: getattr(args, name) for name in ("engine", "rounds", "prompt_tokens", "new_tokens")}
        llms = {
            name: edge.load(args.bundle, engine=args.engine, reproducible=reproducible, max_context=MAX_CONTEXT)
            for name, reproducible in SETTINGS.items()
        }
        rng = np.random.default_rng(0)
        known = llms["plain"].tokenizer.num_tokens
        prompts = [rng.integers(0, known, args.prompt_tokens).tolist() for _ in range(max(args.sequences))]
        report["throughput"] = throughput(llms, prompts, args.sequences, args.new_tokens, args.rounds)
        report["fairness"] = fairness(llms, rng, known, args.rounds)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    report["targets"] = targets(report["throughput"], SHARES[args.engine])
    put_out(report, show, as_json=args.json)
    return 0


def counts(text: str) -> list[int]:
    """Numbers of requests at once, always including 1, which the others are compared with."""
    return sorted({1, *(int(part) for part in text.split(","))})


# --- Throughput -------------------------------------------------------------------------------------------------------


def throughput(
    llms: dict[str, edge.LLM], prompts: list[Prompt], sizes: list[int], new_tokens: int, rounds: int
) -> list[dict[str, Any]]:
    """A row of figures for each setting and number of requests."""
    alone = {name: [run(llm, [prompt], new_tokens).ids[0] for prompt in prompts] for name, llm in llms.items()}
    for llm in llms.values():
        run(llm, prompts, new_tokens)  # prepares the kernels for this many rows
    names = list(llms)
    found: dict[tuple[str, int], list[Batch]] = {(name, size): [] for name in names for size in sizes}
    for number in range(rounds):
        for size in sizes[number % len(sizes) :] + sizes[: number % len(sizes)]:
            for name in names[number % 2 :] + names[: number % 2]:
                found[name, size].append(run(llms[name], prompts[:size], new_tokens))
    fastest = [max(found[name, 1][i].decode_tok_s for name in names) for i in range(rounds)]
    return [
        {
            "setting": name,
            "sequences": size,
            "decode_tok_s": round(statistics.median(batch.decode_tok_s for batch in batches), 1),
            "with_prefill_tok_s": round(statistics.median(batch.whole_tok_s for batch in batches), 1),
            "of_one": spread([a.decode_tok_s / b.decode_tok_s for a, b in zip(batches, found[name, 1], strict=True)]),
            "of_the_fastest_one": spread([a.decode_tok_s / b for a, b in zip(batches, fastest, strict=True)]),
            "answers": size * rounds,
            "as_alone": sum(same(batch.ids, alone[name]) for batch in batches),
            **({"generate_batch_as_alone": in_a_batch(llms[name], prompts, alone[name])} if size == sizes[-1] else {}),
        }
        for (name, size), batches in found.items()
    ]


def run(llm: edge.LLM, prompts: list[Prompt], new_tokens: int) -> Batch:
    """Answer all at once. The steps are driven from here, so that it is known what each of them added."""
    llm.clear_cache()
    started = time.perf_counter()
    streams = [submit(llm, prompt, new_tokens) for prompt in prompts]
    requests = [stream._request for stream in streams]
    while not all(request.answer_ids for request in requests):
        llm._scheduler.step()
    begun, before = time.perf_counter(), sum(len(request.answer_ids) for request in requests)
    while not all(request.finished for request in requests):
        llm._scheduler.step()
    ended, after = time.perf_counter(), sum(len(request.answer_ids) for request in requests)
    ids = [request.answer_ids for request in requests]
    return Batch(ids, (after - before) / (ended - begun), after / (ended - started))


def submit(llm: edge.LLM, prompt: Prompt, new_tokens: int) -> Stream:
    return llm.generate(prompt, max_new_tokens=new_tokens, ignore_stop_ids=True)


def same(ids: Sequence[Sequence[int]], alone: Sequence[Sequence[int]]) -> int:
    """How many answers equal those given alone."""
    return sum(list(a) == list(b) for a, b in zip(ids, alone, strict=False))


def in_a_batch(llm: edge.LLM, prompts: list[Prompt], alone: list[list[int]]) -> int:
    llm.clear_cache()
    answers = llm.generate_batch(prompts, max_new_tokens=len(alone[0]), ignore_stop_ids=True)
    return same([answer.token_ids for answer in answers], alone)


def targets(rows: list[dict[str, Any]], sharing: tuple[str, ...]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for row in rows:
        if row["sequences"] == TARGET_SEQUENCES and row["setting"] in sharing:
            for key in ("of_one", "of_the_fastest_one"):
                value = row[key]["median"]
                what = f"{row['setting']}: {TARGET_SEQUENCES} requests, {key.replace('_', ' ')}"
                found.append({"what": what, "target": TARGET, "found": value, "met": value >= TARGET})
    kept = [row for row in rows if row["setting"] == "reproducible"]
    total, equal = sum(row["answers"] for row in kept), sum(row["as_alone"] for row in kept)
    found.append({"what": "reproducible: answers as alone", "target": total, "found": equal, "met": total == equal})
    return found


# --- Fairness ---------------------------------------------------------------------------------------------------------


def fairness(llms: dict[str, edge.LLM], rng: np.random.Generator, known: int, rounds: int) -> list[dict[str, Any]]:
    """A row of medians for each setting. The first round only prepares kernels and is not counted."""
    rows = []
    for name, llm in llms.items():
        found = [one_round(llm, rng, known) for _ in range(rounds + 1)][1:]
        medians = [statistics.median(values) for values in zip(*found, strict=True)]
        rows.append({"setting": name, **{key: round(ms, 1) for key, ms in zip(Fairness._fields, medians, strict=True)}})
    return rows


def one_round(llm: edge.LLM, rng: np.random.Generator, known: int) -> Fairness:
    def prompt(count: int) -> Prompt:
        return [int(token) for token in rng.integers(0, known, count)]

    llm.clear_cache()
    short_alone, _ = first_token_ms(llm, submit(llm, prompt(SHORT_TOKENS), 1), time.perf_counter())
    started = time.perf_counter()
    long_alone, _ = first_token_ms(llm, submit(llm, prompt(LONG_TOKENS), 1), started)

    long = submit(llm, prompt(LONG_TOKENS), 1)
    llm._scheduler.step()
    started = time.perf_counter()
    short_beside_long, _ = first_token_ms(llm, submit(llm, prompt(SHORT_TOKENS), 1), started)
    long.close()

    running = [submit(llm, prompt(SHORT_TOKENS), 1000) for _ in range(RUNNING)]
    while not all(stream._request.answer_ids for stream in running):
        llm._scheduler.step()
    usual = [step_ms(llm) for _ in range(SETTLED_STEPS)]
    long, long_started = submit(llm, prompt(LONG_TOKENS), 1), time.perf_counter()
    gaps = [step_ms(llm) for _ in range(READ_STEPS)]  # every step gives each of the four a token
    started = time.perf_counter()
    short_beside_all, more = first_token_ms(llm, submit(llm, prompt(SHORT_TOKENS), 1), started)
    long_beside_all, rest = first_token_ms(llm, long, long_started)
    for stream in running:
        assert not stream._request.finished, "an answer ended before the long prompt was read"
        stream.close()
    return Fairness(
        short_alone,
        short_beside_long,
        short_beside_all,
        long_alone,
        long_beside_all,
        statistics.median(usual),
        max(*gaps, *more, *rest),
    )


def first_token_ms(llm: edge.LLM, stream: Stream, started: float) -> tuple[float, list[float]]:
    """Milliseconds from a moment until a stream has its first token, and of each step until then."""
    steps = []
    while not stream._request.answer_ids:
        steps.append(step_ms(llm))
    return 1000 * (time.perf_counter() - started), steps


def step_ms(llm: edge.LLM) -> float:
    started = time.perf_counter()
    llm._scheduler.step()
    return 1000 * (time.perf_counter() - started)


# --- Reporting --------------------------------------------------------------------------------------------------------


def show(report: dict[str, Any]) -> None:
    show_about(report)
    show_table(
        [
            {
                "setting": row["setting"],
                "requests": row["sequences"],
                "decode tok/s": row["decode_tok_s"],
                "with prefill": row["with_prefill_tok_s"],
                "of one": ratio_text(row["of_one"]),
                "of the fastest one": ratio_text(row["of_the_fastest_one"]),
                "as alone": f"{row['as_alone']} of {row['answers']}",
                "generate_batch as alone": row.get("generate_batch_as_alone", "-"),
            }
            for row in report["throughput"]
        ]
    )
    columns = [row["setting"] for row in report["fairness"]]
    names = {
        "short_alone": f"first token of {SHORT_TOKENS}, alone",
        "short_beside_long": "  while a long prompt is read",
        "short_beside_all": "  and four others decode",
        "long_alone": f"first token of {LONG_TOKENS}, alone",
        "long_beside_all": "  while others decode and a short prompt comes",
        "usual_gap": "usual gap between tokens of four answers",
        "longest_gap": "longest gap while the long prompt is read",
    }
    show_table(
        [
            {"ms": text, **{name: row[key] for name, row in zip(columns, report["fairness"], strict=True)}}
            for key, text in names.items()
        ]
    )
    show_table([{**row, "met": met_text(row["met"])} for row in report["targets"]])


if __name__ == "__main__":
    sys.exit(main())
