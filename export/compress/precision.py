"""How one weight is stored, and how many bytes that takes.

Knows nothing about recipes, names of weights or methods.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from edge.runtime.errors import RecipeError, shown

FEW_BITS = 4  # with so many or fewer, weights are in groups, and which integer each gets is chosen with care
MIN_GROUP_SIZE = 32  # smaller groups fall off the fast kernels (as nncf's AdvancedCompressionParameters)
AWQ = "-awq"  # after a precision
# Rows are independent, so a large matrix can be compressed some rows at a time, which bounds memory.
CHUNK = 1 << 26  # weights at a time, of a matrix with more than WHOLE
WHOLE = 7 << 24  # weights: GLM-4-9B's gate_up has 112 million and is not worth two calls


@dataclass(frozen=True, slots=True)
class Precision:
    """How one weight is stored."""

    bits: int
    symmetric: bool = False
    group_size: int = 0  # 0: a whole row

    @classmethod
    def parse(cls, text: str) -> Precision:
        """The inverse of `str`. Raises RecipeError."""
        match = re.fullmatch(r"int(2|4|8)-(a?sym)(?:-(channel)|-g(\d{1,9}))?|fp(16|32)", text)
        if match is None:
            raise RecipeError(
                f"precision {shown(text)} is unknown, expected int8-asym, int4-asym-g128, int4-sym-channel, ..."
            )
        bits, sign, channel, group, width = match.groups()
        if width:
            return cls(int(width))
        if bits == "8" and group:
            raise RecipeError(f"precision {shown(text)}: nncf has 8 bits with one scale a row only; use int8-{sign}")
        if bits != "8" and not (group or channel):
            raise RecipeError(f"precision {shown(text)}: expected a group size, as in {text}-g128, or {text}-channel")
        if group and int(group) < MIN_GROUP_SIZE:
            raise RecipeError(f"precision {shown(text)}: groups have {MIN_GROUP_SIZE} weights or more")
        return cls(int(bits), sign == "sym", int(group or 0))

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    @property
    def is_narrow(self) -> bool:
        """Whether it has so few bits that rounding to nearest shows."""
        return self.bits <= FEW_BITS

    def __str__(self) -> str:
        if self.is_float:
            return f"fp{self.bits}"
        kind = f"int{self.bits}-{'sym' if self.symmetric else 'asym'}"
        return f"{kind}-g{self.group_size}" if self.group_size else f"{kind}-channel" if self.is_narrow else kind


@dataclass(frozen=True, slots=True)
class Rounding:
    """How a single matrix is rounded, if that is chosen for each matrix."""

    precision: Precision
    awq: bool = False  # channels scaled by their inputs

    @classmethod
    def parse(cls, text: str) -> Rounding:
        """The inverse of `str`. Raises RecipeError."""
        return cls(Precision.parse(text.removesuffix(AWQ)), text.endswith(AWQ))

    def __str__(self) -> str:
        return f"{self.precision}{AWQ if self.awq else ''}"


def fit(wanted: Precision, shape: tuple[int, ...]) -> tuple[Precision, str]:
    """The wanted precision, or the nearest one that the shape allows, and why."""
    if not wanted.group_size or shape[1] % wanted.group_size == 0:
        return wanted, ""
    group_size = shape[1] & -shape[1]  # the largest power of two that divides the width
    if group_size >= MIN_GROUP_SIZE:
        smaller = min(group_size, wanted.group_size)
        return replace(wanted, group_size=smaller), f"width {shape[1]} has no groups of {wanted.group_size}"
    return Precision(8, wanted.symmetric), f"width {shape[1]} has no groups of {MIN_GROUP_SIZE} or more"


def stored_bytes(precision: Precision, shape: tuple[int, ...]) -> int:
    """Bytes of a weight in this precision, including scales (float16) and zero points."""
    size = math.prod(shape)
    if precision.is_float:
        return size * precision.bits // 8
    groups = size // (precision.group_size or shape[1])
    zero_points = 0 if precision.symmetric else -(-groups * precision.bits // 8)
    return size * precision.bits // 8 + 2 * groups + zero_points
