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
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")  # count without a temperature, too
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


def sampling_keywords(args: argparse.Namespace) -> dict[str, Any]:  # Any: numbers of both kinds, and a word
    """Keywords for `LLM.generate`; what was not given is left out."""
    names = ("sampling", *(spec.name for spec in SAMPLING))
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def say_sampling(llm: LLM, settings: Keywords) -> None:
    """Say on a terminal how tokens are chosen."""
    if sys.stderr.isatty():
        print(f"sampling: {sampling_in_use(llm, settings)}", file=sys.stderr)


def sampling_in_use(llm: LLM, settings: Keywords) -> str:
    """Say in a line how tokens are chosen, and whose choice that is. settings: keywords of an answer."""
    shown, recommended = _telling(_made(llm, settings)), llm.recommended_sampling
    given = {spec.name for spec in SAMPLING if spec.name in settings}
    text = _described(shown)
    if settings.get("sampling") == "model":
        theirs = {name for name in shown if name in _telling(recommended)} - given
        return f"{text} ({'partly ' if given & shown.keys() else ''}the model's)" if theirs else text
    if recommended != Sampling() and not given:
        return f"{text} (the model recommends {_described(_telling(recommended))}; --sampling model)"
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


def _telling(sampling: Sampling) -> dict[str, float]:
    """What differs from the default and has an effect; what cuts off the tail has none without a temperature."""
    changed = {spec.name: value for spec in SAMPLING if (value := getattr(sampling, spec.name)) != spec.default}
    return changed if sampling.temperature else {name: changed[name] for name in changed if name in PENALTIES}


def _described(shown: Mapping[str, float]) -> str:
    """`temperature 0.8, top-p 0.8`, or `greedy`."""
    parts = [f"{name.replace('_', '-')} {value:g}" for name, value in shown.items()]
    return ", ".join(parts if "temperature" in shown else ["greedy", *parts])
