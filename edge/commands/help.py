"""How a verb's help is put together: what it says, its defaults, and the examples at its end.

In: docstrings of verbs, settings classes. Out: keywords for an argparse parser, and help texts. Every default that a
help text shows is read from the class or constant that holds it. Knows no verb.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

_EXAMPLES = "\nexamples:\n"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Also puts brackets around arguments that may be missing without saying so to argparse by nargs."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        text = super()._format_args(action, default_metavar)
        bare = not action.option_strings and action.nargs is None and not action.required
        return f"[{text}]" if bare else text


def sections(text: str) -> dict[str, Any]:  # Any: keywords of several types
    """A docstring that ends with "examples:" as keywords for a parser: description, epilog, and how to print them."""
    description, found, examples = text.strip("\n").partition(_EXAMPLES)
    return {
        "description": description.rstrip(),
        "epilog": f"{_EXAMPLES.lstrip()}{examples.rstrip()}" if found else None,
        "formatter_class": _Formatter,
    }


def first_line(text: str) -> str:
    """What a list of verbs says of one: the first line of its docstring, without the full stop."""
    return text.strip().splitlines()[0].removesuffix(".")


def usual(settings: type, name: str) -> Any:  # Any: defaults of every type
    """The default of a settings class's field."""
    return next(spec.default for spec in fields(settings) if spec.name == name)


def told(text: str, default: object) -> str:
    """A help text with its default: a number, a name, several of them, or what happens without the option in words."""
    return f"{text} (default: {listed(default)})"


def listed(value: object) -> str:
    """A value as it would be typed: 0.5, int8-asym, 32,512."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(listed(item) for item in value)
    return str(value)
