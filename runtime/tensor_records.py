"""Lines of a manifest about single weights and single stages.

In: objects of the manifest. Out: records, typed and within bounds. Knows nothing about what a weight is for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from edge.runtime.json_object import ObjectReader


@lru_cache(256)  # hundreds of matrices share a few precisions
def _bits_of(precision: str) -> int:
    return int(re.sub(r"\D*(\d+).*", r"\1", precision))


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """What one weight matrix became."""

    shape: tuple[int, ...]
    precision: str  # "int4-asym-g64", "int8-asym", "fp16" ...
    nbytes: int  # integers, scales and zero points
    note: str  # why it is not what the recipe asks for; empty if it is

    @property
    def bits(self) -> int:
        """Bits of each number, without scales and zero points."""
        return _bits_of(self.precision)


@dataclass(frozen=True, slots=True)
class StageCheck:
    """How exactly one stage of the compressed model computes, measured at export on the float model's own input."""

    stage: str  # "embedding", "block 3", "head"
    error: float  # of its output, relative to the float model's
    expected: float  # about the error that rounding the weights by the recipe explains


def read_tensor(read: ObjectReader) -> TensorRecord:
    """Raises the reader's error where a field is not of its type."""
    return TensorRecord(
        shape=read.wholes("shape", 1, 1 << 40),
        precision=read.word("precision", r"[a-z]+[1-9]\d?(-.*)?", 'a word with its bits, like "int4-asym-g64"'),
        nbytes=read.whole("nbytes"),
        note=read.word("note"),
    )


def read_stage_check(read: ObjectReader) -> StageCheck:
    """Raises as `read_tensor`."""
    return StageCheck(read.word("stage"), read.number("error"), read.number("expected"))
