"""Named compression settings, and the rule for weights that cannot get what a recipe asks for.

In: `recipes.toml` and a weight's name and shape. Out: a `Precision` for that weight, with a note where it differs from
the recipe. Knows nothing about NNCF or files.

The rule, for a (N, K) weight:
  1. norms and biases keep float32 (float16 in `fp16`);
  2. embedding and vocabulary projection get what the recipe says for them: 8 bits, one scale a row, unless chosen
     otherwise;
  3. groups have the wanted size where it divides K; else the largest power of two from 32 up to it that divides K; else
     the weight gets 8 bits with one scale a row.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

from edge.export.weights.names import EMBEDDING, HEAD
from edge.runtime.errors import RecipeError, shown

DEFAULT = "int4-asym-g128"
MIN_GROUP_SIZE = 32  # smaller groups fall off the fast kernels (as nncf's AdvancedCompressionParameters)
CHOSEN = "chosen by its measured error"
AWQ = "-awq"  # behind a precision
# How 4-bit integers are chosen: from the weights alone, or from what calibration text gives them as input, by nncf's
# scale estimation or GPTQ, or by ours (`gptq.py`).
Method = Literal["data-free", "scale-estimation", "nncf-gptq", "gptq"]
METHODS: tuple[Method, ...] = get_args(Method)
# What channels are scaled by before a block is rounded: nothing, the size of weights, or that of inputs.
Scaling = Literal["off", "weights", "inputs"]
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)


@dataclass(frozen=True, slots=True)
class Precision:
    """How one weight is stored."""

    bits: int
    symmetric: bool = False
    group_size: int = 0  # 0: a whole row

    @classmethod
    def parse(cls, text: str) -> Precision:
        """The inverse of `str`. Raises RecipeError."""
        match = re.fullmatch(r"int(4|8)-(a?sym)(?:-(channel)|-g(\d{1,9}))?|fp(16|32)", text)
        if match is None:
            raise RecipeError(
                f"precision {shown(text)} is unknown, expected int8-asym, int4-asym-g128, int4-sym-channel, ..."
            )
        bits, sign, channel, group, width = match.groups()
        if width:
            return cls(int(width))
        if bits == "8" and group:
            raise RecipeError(f"precision {shown(text)}: nncf has 8 bits with one scale a row only; use int8-{sign}")
        if bits == "4" and not (group or channel):
            raise RecipeError(f"precision {shown(text)}: expected a group size, as in {text}-g128, or {text}-channel")
        if group and int(group) < MIN_GROUP_SIZE:
            raise RecipeError(f"precision {shown(text)}: groups have {MIN_GROUP_SIZE} weights or more")
        return cls(int(bits), sign == "sym", int(group or 0))

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    def __str__(self) -> str:
        if self.is_float:
            return f"fp{self.bits}"
        kind = f"int{self.bits}-{'sym' if self.symmetric else 'asym'}"
        return f"{kind}-g{self.group_size}" if self.group_size else f"{kind}-channel" if self.bits == 4 else kind


@dataclass(frozen=True, slots=True)
class Rounding:
    """How a single matrix is rounded, where that is chosen for each."""

    precision: Precision
    awq: bool = False  # channels scaled by their inputs

    @classmethod
    def parse(cls, text: str) -> Rounding:
        """The inverse of `str`. Raises RecipeError."""
        return cls(Precision.parse(text.removesuffix(AWQ)), text.endswith(AWQ))

    def __str__(self) -> str:
        return f"{self.precision}{AWQ if self.awq else ''}"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named compression setting."""

    name: str
    description: str
    linear: Precision
    embedding: Precision  # also of a head that is tied to it
    head: Precision
    method: Method = "data-free"
    rotate: bool = False  # the residual stream, before anything is rounded
    awq: Scaling = "off"
    rank: int = 0  # of a product that is added to each matrix of 4 bits and fitted to what it lacks; 0: none
    # Of single matrices, by canonical name, instead of all the above; they fit their shapes.
    choices: Mapping[str, Rounding] = field(default_factory=dict, hash=False)

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration text."""
        return self.method != "data-free" or self.awq == "inputs" or self.rank > 0

    def with_vocabulary(self, embedding: str | None, head: str | None, *, tied: bool) -> Recipe:
        """The same recipe with other precisions for embedding and head. Raises RecipeError."""
        if tied and embedding is not None and head is not None and embedding != head:
            raise RecipeError(
                f"embedding {embedding} and head {head}: this model has one matrix for both; give one precision"
            )
        if tied:
            embedding = embedding or head
        return replace(
            self,
            embedding=self.embedding if embedding is None else Precision.parse(embedding),
            head=self.head if head is None else Precision.parse(head),
        )

    def precision_of(self, name: str, shape: tuple[int, ...]) -> tuple[Precision, str]:
        """What the weight of this canonical name gets, and why not the linear layers' precision ("" where it does)."""
        if len(shape) == 1:
            return Precision(16 if self.linear.bits == 16 else 32), "norms and biases stay float"
        if name in self.choices:
            choice = self.choices[name]
            return choice.precision, f"{CHOSEN}, as were scaled channels" if choice.awq else CHOSEN
        if name in (EMBEDDING, HEAD):
            wanted = self.embedding if name == EMBEDDING else self.head
            found, note = fit(wanted, shape)
            return found, note or ("" if found == self.linear else "as chosen for embedding and head")
        return fit(self.linear, shape)

    def scales(self, name: str) -> bool:
        """Whether channels of this block's matrix may be scaled."""
        return self.choices[name].awq if name in self.choices else self.awq != "off"

    def bytes_of(self, name: str, shape: tuple[int, ...]) -> int:
        """Bytes that the weight of this canonical name takes, scales (float16) and zero points included."""
        precision, rank = self.precision_of(name, shape)[0], self.rank_of(name, shape)
        size = stored_bytes(precision, shape)
        if rank:
            narrow = Precision(8, precision.symmetric)
            size += stored_bytes(narrow, (rank, shape[1])) + stored_bytes(narrow, (shape[0], rank))
        return size

    def rank_of(self, name: str, shape: tuple[int, ...]) -> int:
        """Of what is added to the weight of this canonical name; 0: nothing is."""
        return 0 if name in (EMBEDDING, HEAD) or self.precision_of(name, shape)[0].bits != 4 else min(self.rank, *shape)


def fit(wanted: Precision, shape: tuple[int, ...]) -> tuple[Precision, str]:
    """The wanted precision, or the nearest that this shape allows and why."""
    if not wanted.group_size or shape[1] % wanted.group_size == 0:
        return wanted, ""
    group_size = shape[1] & -shape[1]  # the largest power of two that divides the width
    if group_size >= MIN_GROUP_SIZE:
        smaller = min(group_size, wanted.group_size)
        return replace(wanted, group_size=smaller), f"width {shape[1]} has no groups of {wanted.group_size}"
    return Precision(8, wanted.symmetric), f"width {shape[1]} has no groups of {MIN_GROUP_SIZE} or more"


def stored_bytes(precision: Precision, shape: tuple[int, ...]) -> int:
    """Bytes of a weight in this precision, scales (float16) and zero points included."""
    size = math.prod(shape)
    if precision.is_float:
        return size * precision.bits // 8
    groups = size // (precision.group_size or shape[1])
    zero_points = 0 if precision.symmetric else -(-groups * precision.bits // 8)
    return size * precision.bits // 8 + 2 * groups + zero_points


@cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name, in the order of the file."""
    tables = tomllib.loads((files("edge.export") / "recipes.toml").read_text(encoding="utf-8"))
    return {name: _recipe(name, **table) for name, table in tables.items()}


def _recipe(
    name: str,
    description: str,
    linear: str,
    embedding: str | None = None,
    head: str | None = None,
    method: Method = "data-free",
    rotate: bool = False,
    awq: Scaling = "off",
    rank: int = 0,
) -> Recipe:
    assert method in METHODS, f"{name}: method {method!r}"
    assert awq in SCALINGS, f"{name}: awq {awq!r}"
    precision = Precision.parse(linear)
    default = precision if precision.is_float else Precision(8, precision.symmetric)
    recipe = Recipe(name, description, precision, default, default, method, rotate, awq, rank)
    return recipe.with_vocabulary(embedding, head, tied=False)


def find_recipe(name: str) -> Recipe:
    """Raises RecipeError, listing the known recipes."""
    if name not in recipes():
        raise RecipeError(f"recipe {shown(name)} is unknown, known are {', '.join(recipes())}")
    return recipes()[name]
