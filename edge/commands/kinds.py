"""What the words of a command line may be: types for argparse that say what was given and what was expected.

In: one word. Out: a value, or argparse's error. Knows no verb and no option.
"""

from __future__ import annotations

import argparse
import math
import re
from typing import Any

from edge.runtime.engines.registry import find
from edge.runtime.errors import SettingsError, shown
from edge.runtime.rules import FilePath, Rule, Text, Whole, check_value
from edge.runtime.settings import MAX_NAME

MAX_BYTES = 2**63
MAX_COUNTS = 100  # of prompts to measure
MAX_CLIENTS = 64  # of a server that is measured: as many as may wait for it
UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def token_counts(text: str) -> list[int]:
    """32,512 as numbers above 0."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not 1 <= len(counts) <= MAX_COUNTS or min(counts) < 1:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is not a list of token counts; give up to {MAX_COUNTS} numbers above 0 like 32,512"
        )
    return counts


def client_counts(text: str) -> list[int]:
    """1,4,8,16 as numbers in rising order, each once."""
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = [0]
    if text.count(",") >= MAX_COUNTS or counts[0] < 1 or counts[-1] > MAX_CLIENTS:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is not a list of numbers of clients; give numbers from 1 to {MAX_CLIENTS} like 1,4,8,16"
        )
    return counts


def whole_number(text: str) -> int:
    """0 or more."""
    try:
        return Whole().take(int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number, 0 or more") from None


def path(text: str) -> str:
    """The path of a file or folder, there or not, as it was given."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give the name of a file or folder")
    _taken("it", FilePath(), text)
    return text


def is_path(kind: object) -> bool:
    """Whether arguments of a type are paths."""
    return kind is path


def device_name(text: str) -> str:
    """What could be one."""
    return str(_taken("it", Text(longest=MAX_NAME), text))


def engine_name(text: str) -> str:
    """The name of an engine: a wrong one is answered with the known ones and what installs them."""
    name = _taken("it", Text(longest=MAX_NAME), text)
    try:
        return find(name).name
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def size(text: str, plain: int = 1) -> int:
    """5.2GB, 5200MB, 5.2e9 or 4.8GiB in bytes. plain: bytes that a number without a unit counts."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    try:
        count = float(match[1]) * (UNITS[match[2]] if match[2] else plain) if match else math.nan
    except (KeyError, ValueError):
        count = math.nan
    if not 0 < count < MAX_BYTES:
        alone = f"{'gigabytes' if plain > 1 else 'bytes'} like {5.2e9 / plain:g}".replace("e+0", "e")
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is not a size; give {alone}, or a unit as in 5.2GB, 5200MB or 4.8GiB"
        )
    return max(int(count), 1)


def gigabytes(text: str) -> int:
    """2.1, or a size with its unit, in bytes."""
    return size(text, UNITS["gb"])


def gigabytes_or_none(text: str) -> int:
    """0 for none at all, or as `gigabytes`."""
    return 0 if text.strip() == "0" else gigabytes(text)


def numbers(text: str) -> list[float]:
    """0,50,100 as numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers; give them like 0,50,100") from None


def _taken(name: str, rule: Rule, text: str) -> Any:  # Any: what the rule makes of it
    try:
        return check_value(name, rule, text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
