"""Options that say how tokens are chosen, and the line that tells it.

In: a parser; later the arguments and a loaded model. Out: options, keywords for `LLM.generate`, a line for people and
fields for programs. What is not given comes from where --sampling says: each verb has its own default for that. Knows
no verb.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from edge.commands.help import told
from edge.runtime.rules import Whole, help_of, rule_of
from edge.runtime.settings import USUAL_SAMPLINGS, Sampling, UsualSampling

if TYPE_CHECKING:
    from edge.runtime.llm import LLM

SAMPLING = tuple(spec for spec in fields(Sampling) if spec.name != "logit_bias")  # no command line has room for that
Keywords = Mapping[str, Any]  # of an answer


def add_usual_sampling(group: argparse._ActionsContainer, usual: UsualSampling, what: str = "option") -> None:
    """Where sampling comes from that no option, or no request, sets."""
    group.add_argument(
        "--sampling",
        choices=USUAL_SAMPLINGS,
        default=usual,
        help=told(
            f"where no {what} says how tokens are chosen: always the likeliest, or as the model's makers recommend",
            usual,
        ),
    )


def add_sampling(parser: argparse.ArgumentParser, usual: UsualSampling) -> None:
    """How tokens are chosen."""
    group = parser.add_argument_group("sampling")
    add_usual_sampling(group, usual)
    for spec in SAMPLING:
        kind, metavar = (int, "N") if isinstance(rule_of(spec), Whole) else (float, "X")
        text = help_of(spec)
        if spec.default is not None:
            text = told(text, f"{spec.default:g}" if usual == "greedy" else f"the model's, or {spec.default:g}")
        group.add_argument(f"--{spec.name.replace('_', '-')}", type=kind, metavar=metavar, help=text)


def sampling_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords for `LLM.generate`; what was not given is left out."""
    names = ("sampling", *(spec.name for spec in SAMPLING))
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def say_sampling(llm: LLM, settings: Keywords) -> None:
    """Say on a terminal how tokens are chosen."""
    if sys.stderr.isatty():
        print(f"sampling: {sampling_in_use(llm, settings)}", file=sys.stderr)


def sampling_in_use(llm: LLM, settings: Keywords) -> str:
    """Say in a line how tokens are chosen, and whose choice that is. settings: keywords of an answer."""
    sampling, recommended = _made(llm, settings), llm.recommended_sampling
    given = {spec.name for spec in SAMPLING if spec.name in settings}
    theirs = set(_changed(recommended)) - given if settings.get("sampling") == "model" else set()
    text = _described(sampling)
    if theirs:
        return f"{text} ({'partly ' if given & set(_changed(sampling)) else ''}the model's)"
    if recommended != Sampling() and not given and settings.get("sampling") != "model":
        return f"{text} (the model recommends {_described(recommended)}; --sampling model)"
    return text


def sampling_fields(llm: LLM, settings: Keywords) -> dict[str, object]:
    """The same for programs: every value in use, and where those come from that were not given."""
    sampling = _made(llm, settings)
    return {
        "from": settings.get("sampling", "greedy"),
        **{spec.name: getattr(sampling, spec.name) for spec in SAMPLING},
    }


def _made(llm: LLM, settings: Keywords) -> Sampling:
    from edge.runtime.settings import generation_settings

    return generation_settings(llm.recommended_sampling, **settings).sampling


def _changed(sampling: Sampling) -> dict[str, float]:
    """What differs from the default, except for the seed."""
    return {
        spec.name: value
        for spec in SAMPLING
        if spec.name != "seed" and (value := getattr(sampling, spec.name)) != spec.default
    }


def _described(sampling: Sampling) -> str:
    """`temperature 0.8, top-p 0.8`; what cuts the tail off counts for nothing without a temperature."""
    cold = ("temperature", "top_k", "top_p", "min_p", "typical_p")
    changed = _changed(sampling)
    if not sampling.temperature:
        changed = {name: value for name, value in changed.items() if name not in cold}
    seed = [] if sampling.seed is None or not sampling.temperature else [f"seed {sampling.seed}"]
    parts = [f"{name.replace('_', '-')} {value:g}" for name, value in changed.items()]
    return ", ".join([*([] if sampling.temperature else ["greedy"]), *parts, *seed])
