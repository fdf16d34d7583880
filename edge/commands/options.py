"""Arguments that several verbs share, and what they become. Defaults come from the settings classes."""

from __future__ import annotations

import argparse
from typing import Any

SAMPLING = {  # option -> (type, help)
    "temperature": (float, "0 is greedy"),
    "top_p": (float, "keep the smallest set of best tokens with this much probability"),
    "top_k": (int, "keep the k best tokens; 0 keeps all"),
    "min_p": (float, "keep tokens with this share of the best one's probability"),
    "repetition_penalty": (float, "above 1 makes ids that have occurred less likely"),
    "seed": (int, "same seed, same text"),
}
BYTES_PER_TOKEN = 4  # of English and Chinese alike, roughly


def add_engine(parser: argparse.ArgumentParser, *more: str) -> None:
    """Which engine, or what else the verb takes for one, and device."""
    choices = ["auto", "openvino", "onnx", *more]
    parser.add_argument("--engine", "--engines", choices=choices, default="auto", help="default: auto")
    parser.add_argument(
        "--device", default="CPU", metavar="CPU|GPU|NPU", help="default: CPU; `edge devices` lists them"
    )
    parser.add_argument("--max-context", type=int, metavar="TOKENS", help="default: the model's limit")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the device's choice")


def add_generation(parser: argparse.ArgumentParser) -> None:
    """What an answer may be."""
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="default: 512")
    for name, (kind, help_text) in SAMPLING.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, metavar="N" if kind is int else "X", help=help_text
        )
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text; repeatable")
    parser.add_argument("--deadline", type=float, dest="deadline_s", metavar="SECONDS", help="end the answer in time")
    parser.add_argument("--system", metavar="TEXT", help="a system message")


def engine_settings(args: argparse.Namespace, prompt: str | None = None) -> dict[str, Any]:
    """Keywords for `edge.load`; of a prompt only about its length counts."""
    tokens = None if prompt is None else len(prompt.encode()) // BYTES_PER_TOKEN
    chosen = {
        "engine": args.engine,
        "expected_prompt_tokens": tokens,
        "device": args.device,
        "max_context": args.max_context,
        "threads": args.threads,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def generation_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords for `LLM.generate`; what was not given is left to the settings classes."""
    names = ("max_new_tokens", "stop", "deadline_s", *SAMPLING)
    return {name: value for name in names if (value := getattr(args, name)) is not None}
