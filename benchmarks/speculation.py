"""What drafting gains when an answer repeats something, and what it costs when it does not.

    python benchmarks/speculation.py BUNDLE [--engine openvino|onnx|both] [--rounds 2] [--new-tokens 120] [--json]

BUNDLE is a chat model that can follow a plain instruction: the demo model of `edge demo` does, weights of noise do not.
The tasks have fixed prompts over passages of the documentation inside CPython (pydoc_data.topics), whose wording
differs a little from one Python to the next:

    copy            repeat a passage
    rewrite         repeat it with one word changed everywhere
    context         answer questions about a passage in its own words
    asked before    questions that another LLM has answered once, whose draft store is opened in a fresh one
    control         free text that shares nothing with its prompt, greedily
    control sampled the same at temperature 1.0, where it does not repeat itself

Each prompt is answered by four set-ups, one after the other; which one is first rotates from prompt to prompt:

    a  plain         reproducible engine, no drafts
    b  drafts        reproducible engine, drafts: what speculation=True means
    c  fastest       no drafts, and the engine's fastest kernels
    d  fastest with  drafts over those kernels, reproducible=False
       drafts

tok/s are those of decode (Stats.tokens_per_second), medians over prompts and rounds; the ratios are medians of the
ratios of pairs that answered the same prompt in the same round, with the lowest and the highest. The prefix cache is
cleared before every answer. Every round loads the LLMs anew, as they draft from what they have answered. A first pass
over other prompts is not timed: it prepares kernels, and they learn what a step costs and how often drafts are right.

b must give the ids of a. d may differ from c, since several rows are rounded differently from one: "margin" is by how
much the best logit led the second where the two diverged, recomputed by c after the same ids (greedy tasks only).
"repeats" is the share of the answer's tokens that end a run of four ids which occurred earlier in the answer, "quotes"
of those that end four ids of the prompt: a model that repeats itself endlessly makes drafting look good, so check these
before the ratios.

Targets: b/a and b/c at least 2.0 with identical ids for the first four tasks, at least 0.97 for the controls.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from report import about, met_text, put_out, ratio_text, show_about, show_table, spread

import edge
from edge.runtime.chunk import Answer
from edge.runtime.errors import EdgeError
from edge.runtime.kv.prefix import common_prefix

COPY, REWRITE, CONTEXT, ASKED = "copy", "rewrite", "context", "asked before"
CONTROL, SAMPLED = "control", "control sampled"
TARGETS = {COPY: 2.0, REWRITE: 2.0, CONTEXT: 2.0, ASKED: 2.0, CONTROL: 0.97, SAMPLED: 0.97}
GRAM = 4  # ids that count as a repetition

# Set-up -> (reproducible, with drafts)
PLAIN, DRAFTS, FASTEST, FASTEST_DRAFTS = "plain", "drafts", "fastest", "fastest with drafts"
SETUPS = {PLAIN: (True, False), DRAFTS: (True, True), FASTEST: (False, False), FASTEST_DRAFTS: (False, True)}
PAIRS = {"b/a": (DRAFTS, PLAIN), "b/c": (DRAFTS, FASTEST), "d/c": (FASTEST_DRAFTS, FASTEST)}

# Topic and its paragraphs, counted from 0; word to replace and its replacement.
PASSAGES = (("break", (2, 3, 4, 5)), ("del", (3, 4, 5)), ("global", (2, 3, 4)))
REPLACED = (("loop", "cycle"), ("name", "label"), ("names", "words"))
CONTEXT_PASSAGE = ("return", (2, 3, 4, 5, 6, 7))
QUESTIONS = (
    "Where may return occur?",
    "What happens when return passes control out of a try statement with a finally clause?",
    "What does the return statement indicate in a generator function?",
    "What does an empty return statement indicate in an asynchronous generator function?",
)
FREE_QUESTIONS = (
    "Why is the sky blue?",
    "How does one bake bread?",
    "What is a volcano?",
    "Why do birds fly south in winter?",
)
FREE_TEXTS = (
    "Name three things that one needs on a camping trip and say why.",
    "Write a short story about a fisherman and the sea.",
    "Describe a market in a small town.",
)
WARM_UP_PASSAGES = (("continue", (2, 3)), ("raise", (2, 3, 4)))
WARM_UP_TEXTS = ("Describe a garden after rain.", "What is a glacier?", "Write a short story about a clock.")


LLMs = Mapping[tuple[str, bool], edge.LLM]


@dataclass(frozen=True)
class Task:
    """One prompt."""

    name: str
    message: str
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """The answers of all set-ups to one prompt."""

    task: Task
    prompt_ids: list[int]
    answers: dict[str, Answer]

    def speed(self, setup: str) -> float:
        stats = self.answers[setup].stats
        assert stats is not None
        return stats.tokens_per_second

    def same_ids(self, one: str, other: str) -> bool:
        return self.answers[one].token_ids == self.answers[other].token_ids


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", choices=("openvino", "onnx", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=120)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    engines = ("openvino", "onnx") if args.engine == "both" else (args.engine,)
    try:
        report = about(args.bundle) | {"settings": {"rounds": args.rounds, "new_tokens": args.new_tokens}}
        report["tasks"] = [row for name in engines for row in compare(args.bundle, name, args.rounds, args.new_tokens)]
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    put_out(report, show, as_json=args.json)
    return 0


# --- What is asked ----------------------------------------------------------------------------------------------------


def make_tasks() -> list[Task]:
    """All prompts, task by task."""
    passages = [passage(*where) for where in PASSAGES]
    rewrites = [
        f'Copy the following text, but write "{new}" everywhere instead of "{old}". Write nothing else.\n\n{text}'
        for text, (old, new) in zip(passages, REPLACED, strict=True)
    ]
    context = passage(*CONTEXT_PASSAGE)
    answers = [f"{context}\n\nAnswer with sentences of the text above, word by word. {asked}" for asked in QUESTIONS]
    return [
        *(Task(COPY, copying(text)) for text in passages),
        *(Task(REWRITE, message) for message in rewrites),
        *(Task(CONTEXT, message) for message in answers),
        *(Task(ASKED, message) for message in FREE_QUESTIONS),
        *(Task(CONTROL, message) for message in FREE_TEXTS),
        *(Task(SAMPLED, text, {"temperature": 1.0, "seed": seed}) for seed, text in enumerate(FREE_TEXTS)),
    ]


def warm_up_tasks() -> list[Task]:
    """Prompts that are not among `make_tasks`, and share no answer with them."""
    copies = [Task(COPY, copying(passage(*where))) for where in WARM_UP_PASSAGES]
    return [*copies, *(Task(CONTROL, text) for text in WARM_UP_TEXTS)]


def copying(text: str) -> str:
    return f"Repeat the following text exactly, word by word, and write nothing else.\n\n{text}"


def passage(topic: str, paragraphs: Sequence[int]) -> str:
    """Paragraphs of CPython's documentation, each on a line of its own."""
    found = [" ".join(text.split()) for text in topics[topic].split("\n\n")]
    return "\n".join(found[i] for i in paragraphs)


# --- Measuring --------------------------------------------------------------------------------------------------------


def compare(bundle: Path, engine: str, rounds: int, new_tokens: int) -> list[dict[str, Any]]:
    """A row of figures for every task."""
    tasks = make_tasks()
    found: list[Round] = []
    margins: dict[str, set[float]] = {name: set() for name in TARGETS}
    for number in range(rounds):
        with set_ups(bundle, engine, tasks, new_tokens) as llms:
            latest = measure(llms, tasks, number, new_tokens)
            for r in latest:
                if (difference := margin(r, llms[FASTEST, False])) is not None:
                    margins[r.task.name].add(round(difference, 4))
        found += latest
    return [
        {
            "engine": engine,
            "task": name,
            **summarize([r for r in found if r.task.name == name]),
            "margins": sorted(margins[name]),
        }
        for name in TARGETS
    ]


@contextmanager
def set_ups(bundle: Path, engine: str, tasks: list[Task], new_tokens: int) -> Iterator[LLMs]:
    """(Set-up, whether it has the draft store with answers to the questions asked before) -> its LLM."""
    asked = [task for task in tasks if task.name == ASKED]
    with tempfile.TemporaryDirectory() as scratch:
        llms = {}
        for name, (reproducible, drafts) in SETUPS.items():
            llms[name, False] = edge.load(bundle, engine=engine, speculation=drafts, reproducible=reproducible)
            if drafts:
                settings: dict[str, Any] = {"engine": engine, "reproducible": reproducible, "speculation": True}
                settings["draft_store"] = Path(scratch) / f"{name}.drafts"
                with edge.load(bundle, **settings) as first:  # writes the store when it is closed
                    for task in asked:
                        answer_of(first, task, new_tokens)
                del first
                llms[name, True] = edge.load(bundle, **settings)
        try:
            yield llms
        finally:
            for llm in llms.values():
                llm.close()


def measure(llms: LLMs, tasks: list[Task], number: int, new_tokens: int) -> list[Round]:
    """One round, which is the `number`-th."""
    for llm in llms.values():
        for task in warm_up_tasks():
            answer_of(llm, task, new_tokens)
    names, found = list(SETUPS), []
    for index, task in enumerate(tasks):
        first = (number + index) % len(names)
        answers = {}
        for name in names[first:] + names[:first]:
            stored = task.name == ASKED and SETUPS[name][1]
            answers[name] = answer_of(llms[name, stored], task, new_tokens)
        found.append(Round(task, prompt_ids(llms[PLAIN, False], task), answers))
    return found


def answer_of(llm: edge.LLM, task: Task, new_tokens: int) -> Answer:
    llm.clear_cache()
    return llm.chat(messages_of(task), max_new_tokens=new_tokens, **task.sampling).answer()


def prompt_ids(llm: edge.LLM, task: Task) -> list[int]:
    return llm.encode_chat(messages_of(task))


def messages_of(task: Task) -> list[dict[str, str]]:
    return [{"role": "user", "content": task.message}]


def summarize(found: list[Round]) -> dict[str, Any]:
    """Figures of one task; answers of a single token have no speed and are not counted."""
    timed = [r for r in found if all(r.speed(name) for name in SETUPS)]
    drafted = [r.answers[DRAFTS].stats for r in found]
    row: dict[str, Any] = {
        "answers": len(found),
        "tokens": round(statistics.mean(len(r.answers[PLAIN].token_ids) for r in found), 1),
        "repeats": round(statistics.mean(repeated(r.answers[PLAIN].token_ids) for r in found), 3),
        "quotes": round(statistics.mean(repeated(r.answers[PLAIN].token_ids, r.prompt_ids) for r in found), 3),
        "tok_s": {name: round(statistics.median(r.speed(name) for r in timed), 1) for name in SETUPS},
        "ratios": {
            pair: spread([r.speed(name) / r.speed(base) for r in timed]) for pair, (name, base) in PAIRS.items()
        },
        "drafted": sum(stats.drafted_tokens for stats in drafted if stats),
        "accepted": sum(stats.accepted_tokens for stats in drafted if stats),
        "b_has_ids_of_a": sum(r.same_ids(DRAFTS, PLAIN) for r in found),
        "d_has_ids_of_c": sum(r.same_ids(FASTEST_DRAFTS, FASTEST) for r in found),
    }
    target = TARGETS[found[0].task.name]
    row["target"] = target
    row["met"] = {
        "ids": row["b_has_ids_of_a"] == len(found),
        **{pair: row["ratios"][pair]["median"] >= target for pair in ("b/a", "b/c")},
    }
    return row


def repeated(ids: Sequence[int], prompt: Sequence[int] = ()) -> float:
    """The share of ids that end a run of GRAM ids which occurs in the prompt or, without one, earlier in these ids."""
    seen = {tuple(prompt[i : i + GRAM]) for i in range(len(prompt) - GRAM + 1)}
    count = 0
    for i in range(len(ids) - GRAM + 1):
        gram = tuple(ids[i : i + GRAM])
        count += gram in seen
        if not prompt:
            seen.add(gram)
    return count / max(len(ids), 1)


def margin(found: Round, plain: edge.LLM) -> float | None:
    """The difference of the best two logits where d diverged from c; None if it did not, or if tokens were sampled."""
    with_drafts, without = found.answers[FASTEST_DRAFTS].token_ids, found.answers[FASTEST].token_ids
    if with_drafts == without or found.task.sampling:
        return None
    same = common_prefix(with_drafts, without)
    plain.clear_cache()
    stream = plain.generate([*found.prompt_ids, *without[:same]], max_new_tokens=1, ignore_stop_ids=True, logprobs=2)
    (_, best), (_, second) = stream.answer().logprobs[0].top
    return best - second


# --- Reporting


def show(report: dict[str, Any]) -> None:
    show_about(report)
    rows = report["tasks"]
    show_table(
        [
            {
                "engine": r["engine"],
                "task": r["task"],
                "tokens": r["tokens"],
                "repeats": f"{r['repeats']:.0%}",
                "quotes": f"{r['quotes']:.0%}",
                **{f"{key} tok/s": r["tok_s"][name] for key, name in zip("abcd", SETUPS, strict=True)},
                **{pair: ratio_text(ratio) for pair, ratio in r["ratios"].items()},
            }
            for r in rows
        ]
    )
    show_table(
        [
            {
                "engine": r["engine"],
                "task": r["task"],
                "drafted": r["drafted"],
                "accepted": r["accepted"],
                "b = a": f"{r['b_has_ids_of_a']} of {r['answers']}",
                "d = c": f"{r['d_has_ids_of_c']} of {r['answers']}",
                "margins where d leaves c": " ".join(f"{m:.4f}" for m in r["margins"]) or "-",
                "target": f"{r['target']:.2f}",
                **{key: met_text(met) for key, met in r["met"].items()},
            }
            for r in rows
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
