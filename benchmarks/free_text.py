"""What drafting gains on free text, which repeats little of its prompt: 40 questions, greedy and sampled.

    python benchmarks/free_text.py BUNDLE [--engine openvino|onnx] [--prompts 40] [--new-tokens 100]
        [--earlier N | --draft-store FILE] [--draft BUNDLE] [--json]

Each question is answered by three set-ups, one after the other; which one is first rotates from question to question:

    a  plain    reproducible engine, no drafts
    b  drafts   reproducible engine, drafts: what speculation=True means. It learns from its answers as they come, and
                knows those to N other questions that it is asked before, half of them at temperature 1.0, or those in a
                copy of FILE, a draft store; with --draft, that model drafts too
    c  fastest  no drafts, and the engine's fastest kernels

tok/s are those of decode (Stats.tokens_per_second); ratios are medians over questions of two answers to the same one,
with the lowest and the highest, and totals: all tokens over all time. b must give the ids of a.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from report import about, put_out, ratio_text, show_about, show_table, spread

import edge
from edge.runtime.errors import EdgeError

PLAIN, DRAFTS, FASTEST = "plain", "drafts", "fastest"
QUESTIONS = (
    "Why is the sky blue?", "How does one bake bread?", "What is a volcano?", "Why do birds fly south in winter?",
    "Name three things that one needs on a camping trip and say why.", "Describe a market in a small town.",
    "Write a short story about a fisherman and the sea.", "Explain how a bicycle stays upright.",
    "What should I cook tonight with rice and tomatoes?", "Write a poem about autumn.", "How do vaccines work?",
    "Write a letter to a friend who has moved to another country.", "Give me tips for learning a new language.",
    "What is the difference between weather and climate?", "Summarize the story of Romeo and Juliet.",
    "What are the advantages of trains over cars?", "Explain recursion to a beginner.", "Plan a weekend in Rome.",
    "Write a Python function that checks whether a number is prime.", "How can I sleep better at night?",
    "Describe a day in the life of a nurse.", "What causes earthquakes?", "Why did the Roman Empire fall?",
    "Write an email to my manager asking for a day off.", "How does a refrigerator work?", "What is machine learning?",
    "Tell me about the life of honey bees.", "Give a recipe for vegetable soup.", "What is photosynthesis?",
    "Describe the feeling of walking through a forest.", "How do I save money as a student?", "Who was Marie Curie?",
    "Write a dialogue between a teacher and a student who is late.", "Explain supply and demand.",
    "What are good habits for a healthy heart?", "How do computers store numbers?", "What happens when water boils?",
    "Write a review of a restaurant that you liked.", "Explain the rules of football briefly.",
    "Invent a new holiday and describe how it is celebrated.",
)  # fmt: skip

FORMS = (
    "What is {}?", "Tell me something about {}.", "Why do people care about {}?", "Write a short story about {}.",
    "Give three facts about {}.", "Explain {} to a child.", "Write a poem about {}.", "What should I know about {}?",
    "How has {} changed in the last hundred years?", "Write a letter to the editor about {}.", "Is {} expensive?",
    "Describe {} in one paragraph.", "What are the problems with {}?", "What is the future of {}?",
    "Make a list of words about {}.", "Where can I learn more about {}?", "Write a dialogue about {}.",
)  # fmt: skip
TOPICS = (
    "music", "the moon", "coffee", "chess", "the ocean", "paper", "glass", "winter", "the desert", "libraries",
    "bridges", "rain", "cats", "horses", "potatoes", "clocks", "electricity", "rivers", "painting", "mathematics",
    "the post office", "airplanes", "shoes", "salt", "windmills", "photography", "theatre", "swimming", "maps",
    "tea", "mountains", "dreams", "gardens", "radio", "gold", "forests", "ships", "laughter", "zoos", "taxes",
    "democracy", "silk",
)  # fmt: skip
EARLIER_TOKENS, AT_ONCE = 150, 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", choices=("openvino", "onnx"), default="openvino")
    parser.add_argument("--prompts", type=int, default=len(QUESTIONS))
    parser.add_argument("--new-tokens", type=int, default=100)
    before = parser.add_mutually_exclusive_group()
    before.add_argument("--earlier", type=int, default=0)
    before.add_argument("--draft-store", type=Path)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            store = None
            if args.draft_store is not None:  # a copy, since its answers are added
                store = Path(shutil.copy(args.draft_store, scratch))
            elif args.earlier:
                store = Path(scratch) / "earlier.drafts"
                answer_others(args.bundle, store, args.earlier)
            llms = {
                PLAIN: edge.load(args.bundle, engine=args.engine, reproducible=True),
                DRAFTS: edge.load(
                    args.bundle, engine=args.engine, speculation=True, draft_store=store, draft=args.draft
                ),
                FASTEST: edge.load(args.bundle, engine=args.engine),
            }
            report = about(args.bundle) | {
                "settings": {"engine": args.engine, "new_tokens": args.new_tokens, "earlier": args.earlier}
            }
            report["rows"] = [
                compare(llms, sampled, QUESTIONS[: args.prompts], args.new_tokens) for sampled in (False, True)
            ]
            for llm in llms.values():
                llm.close()
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    put_out(report, show, as_json=args.json)
    return 0


def answer_others(bundle: Path, store: Path, most: int) -> None:
    """Fill a draft store with answers to other questions, many at once, as a server does."""
    asked = [form.format(topic) for form, topic in itertools.product(FORMS, TOPICS)][:most]

    def ask(number: int) -> None:
        messages = [{"role": "user", "content": asked[number]}]
        temperature = (0.6, 1.0)[number % 2]
        llm.chat(messages, max_new_tokens=EARLIER_TOKENS, temperature=temperature, seed=number).answer()

    with edge.load(bundle, speculation=True, draft_store=store) as llm, ThreadPoolExecutor(AT_ONCE) as threads:
        for _ in threads.map(ask, range(len(asked))):
            pass


def compare(llms: dict[str, edge.LLM], sampled: bool, questions: tuple[str, ...], new_tokens: int) -> dict[str, Any]:
    """Figures of one way of choosing tokens."""
    names = list(llms)
    speeds: dict[str, list[float]] = {name: [] for name in names}
    tokens, seconds = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    same = drafted = accepted = 0
    for index, question in enumerate(questions):
        sampling: dict[str, Any] = {"temperature": 1.0, "seed": index} if sampled else {}
        ids = {}
        for name in names[index % 3 :] + names[: index % 3]:
            llms[name].clear_cache()
            messages = [{"role": "user", "content": question}]
            answer = llms[name].chat(messages, max_new_tokens=new_tokens, **sampling).answer()
            stats = answer.stats
            assert stats is not None
            ids[name] = answer.token_ids
            if stats.tokens_per_second:
                speeds[name].append(stats.tokens_per_second)
                tokens[name] += len(answer.token_ids)
                seconds[name] += len(answer.token_ids) / stats.tokens_per_second
            drafted += stats.drafted_tokens
            accepted += stats.accepted_tokens
        same += ids[PLAIN] == ids[DRAFTS]
    total = {name: tokens[name] / seconds[name] for name in names}
    return {
        "text": "sampled" if sampled else "greedy",
        "answers": len(questions),
        "tok_s": {name: round(statistics.median(found), 1) for name, found in speeds.items()},
        "b/a": spread([b / a for a, b in zip(speeds[PLAIN], speeds[DRAFTS], strict=True)]),
        "b/c": spread([b / c for c, b in zip(speeds[FASTEST], speeds[DRAFTS], strict=True)]),
        "total_b/a": round(total[DRAFTS] / total[PLAIN], 3),
        "total_b/c": round(total[DRAFTS] / total[FASTEST], 3),
        "drafted": drafted,
        "accepted": accepted,
        "b_has_ids_of_a": same,
    }


def show(report: dict[str, Any]) -> None:
    show_about(report)
    show_table(
        [
            {
                "text": row["text"],
                **{f"{name} tok/s": speed for name, speed in row["tok_s"].items()},
                **{pair: ratio_text(row[pair]) for pair in ("b/a", "b/c")},
                **{f"{pair} in all": row[f"total_{pair}"] for pair in ("b/a", "b/c")},
                "drafted": row["drafted"],
                "accepted": row["accepted"],
                "b = a": f"{row['b_has_ids_of_a']} of {row['answers']}",
            }
            for row in report["rows"]
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
