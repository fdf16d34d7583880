"""Named compression settings, and the rule for weights that cannot get what a recipe asks for.

In: `recipes.toml` and a weight's name and shape. Out: a `Precision` for that weight, with a note where it differs from
the recipe. Knows nothing about NNCF or files.

The rule, for a (N, K) weight:
  1. norms and biases keep float32 (float16 in `fp16`);
  2. embedding and vocabulary projection get at least 8 bits, one scale a row, symmetric if the recipe is;
  3. a linear layer gets the recipe's group size where it divides K; else the largest power of two from 32 up to it that
     divides K; else 8 bits with one scale a row.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from edge.runtime.errors import RecipeError

DEFAULT = "int4-asym-g128"
MIN_GROUP_SIZE = 32  # smaller groups fall off the fast kernels (as nncf's AdvancedCompressionParameters)
VOCABULARY = ("embed.weight", "lm_head.weight")


@dataclass(frozen=True, slots=True)
class Precision:
    """How one weight is stored."""

    bits: int
    symmetric: bool = False
    group_size: int = 0  # 0: a whole row

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    def __str__(self) -> str:
        if self.is_float:
            return f"fp{self.bits}"
        kind = f"int{self.bits}-{'sym' if self.symmetric else 'asym'}"
        return f"{kind}-g{self.group_size}" if self.group_size else f"{kind}-channel" if self.bits == 4 else kind


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named compression setting."""

    name: str
    description: str
    linear: Precision

    def precision_of(self, name: str, shape: tuple[int, ...]) -> tuple[Precision, str]:
        """What the weight of this canonical name gets, and why not the recipe's own precision ("" where it does)."""
        wanted = self.linear
        if len(shape) == 1:
            return Precision(16 if wanted.bits == 16 else 32), "norms and biases stay float"
        if wanted.is_float:
            return wanted, ""
        if name in VOCABULARY:
            kept = Precision(8, wanted.symmetric)
            return kept, "" if wanted == kept else "embedding and head keep 8 bits"
        if not wanted.group_size or shape[1] % wanted.group_size == 0:
            return wanted, ""
        group_size = shape[1] & -shape[1]  # the largest power of two that divides the width
        if group_size >= MIN_GROUP_SIZE:
            smaller = min(group_size, wanted.group_size)
            return replace(wanted, group_size=smaller), f"width {shape[1]} has no groups of {wanted.group_size}"
        return Precision(8, wanted.symmetric), f"width {shape[1]} has no groups of {MIN_GROUP_SIZE} or more"

    def bytes_of(self, name: str, shape: tuple[int, ...]) -> int:
        """Bytes that the weight of this canonical name takes, scales (float16) and zero points included."""
        precision, size = self.precision_of(name, shape)[0], math.prod(shape)
        if precision.is_float:
            return size * precision.bits // 8
        groups = size // (precision.group_size or shape[1])
        zero_points = 0 if precision.symmetric else -(-groups * precision.bits // 8)
        return size * precision.bits // 8 + 2 * groups + zero_points


@cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name, in the order of the file."""
    tables = tomllib.loads((files("edge.export") / "recipes.toml").read_text(encoding="utf-8"))
    return {name: Recipe(name, table.pop("description"), Precision(**table)) for name, table in tables.items()}


def find_recipe(name: str) -> Recipe:
    """Raises RecipeError, listing the known recipes."""
    if name not in recipes():
        raise RecipeError(f"recipe {name!r} is unknown, known are {', '.join(recipes())}")
    return recipes()[name]
