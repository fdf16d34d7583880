"""What every weight of a model gets: precision, rank, scaled channels, bytes, and why. Decided once, in the plan.

In: a `Recipe` and a ModelSpec. Out: `Assignments`, a mapping from canonical name to `Assignment` in the order in which
the decoder uses the weights. Compression, budgets, the manifest and what is printed read this table and do not ask the
recipe again. Knows nothing about checkpoints, or about the values of weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from edge.export.compress.precision import FEW_BITS, Precision
from edge.export.compress.recipes import Recipe, Scaling
from edge.export.vision.names import TowerStage
from edge.export.weights.names import EMBEDDING, HEAD, Stage, canonical_shapes, stages_of
from edge.runtime.spec import ModelSpec
from edge.runtime.tensor_records import TensorRecord

VOCABULARY = ("embedding", "head")  # stages that are not decoder blocks


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one weight gets."""

    name: str
    stage: str  # that brings it: "embedding", "block 3", "head"
    shape: tuple[int, ...]
    precision: Precision
    rank: int  # of the product of two narrow matrices that is added; 0: none is
    scaled: Scaling  # what its channels are scaled by before it is rounded
    nbytes: int  # scales, zero points and the narrow matrices included
    why: str  # it has this precision; empty where that is the recipe's for linear layers

    @property
    def is_matrix(self) -> bool:
        """Whether it is neither a norm nor a bias."""
        return len(self.shape) > 1

    @property
    def in_block(self) -> bool:
        """Whether it belongs to a decoder block, and not to the embedding or the head."""
        return self.stage not in VOCABULARY

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def signed(self) -> bool:
        """Whether its integers have a sign, which OpenVINO stores and ONNX does not."""
        return self.precision.symmetric and not self.precision.is_float

    @property
    def note(self) -> str:
        """Everything that is special about it."""
        added = f"with a product of rank {self.rank} added" if self.rank else ""
        return "; ".join(part for part in (self.why, added) if part)

    def record(self) -> TensorRecord:
        """Its line in a bundle's manifest."""
        return TensorRecord(self.shape, str(self.precision), self.nbytes, self.note)


class Assignments(Mapping[str, Assignment]):
    """An `Assignment` for every weight by name, in the order of the decoder."""

    def __init__(self, assignments: Iterable[Assignment]) -> None:
        self._by_name = {assignment.name: assignment for assignment in assignments}

    def __getitem__(self, name: str) -> Assignment:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def of_stage(self, stage: Stage | TowerStage) -> Assignments:
        """Those that a stage brings."""
        return Assignments(found for found in self.values() if found.stage == stage.name)

    @property
    def parameters(self) -> int:
        return sum(found.parameters for found in self.values())

    @property
    def nbytes(self) -> int:
        return sum(found.nbytes for found in self.values())

    @property
    def bits_per_weight(self) -> float:
        """As a manifest states it."""
        return round(8 * self.nbytes / self.parameters, 4)

    @property
    def is_coarse(self) -> bool:
        """Whether any matrix has fewer bits than `FEW_BITS`."""
        return any(found.precision.bits < FEW_BITS for found in self.values())

    @property
    def signed_bytes(self) -> int:
        """Bytes of signed integers with their scales, which a bundle for both formats holds twice."""
        return sum(found.nbytes for found in self.values() if found.signed)

    @property
    def group_size(self) -> int:
        """The smallest group of any matrix; 0 where those of blocks have none."""
        groups = {found.precision.group_size for found in self.values()} - {0}
        return min(groups) if any(found.in_block and found.precision.group_size for found in self.values()) else 0


def assign(recipe: Recipe, spec: ModelSpec) -> Assignments:
    """What a recipe gives every weight of a model."""
    shapes = canonical_shapes(spec)
    return Assignments(
        assign_one(recipe, name, shapes[name], stage.name) for stage in stages_of(spec) for name in stage.own(spec)
    )


def assign_one(recipe: Recipe, name: str, shape: tuple[int, ...], stage: str = "") -> Assignment:
    """What a recipe gives one weight. The one place that asks a recipe.

    name: canonical; a matrix of a traced graph that is neither embedding nor head may have any, and needs no stage.
    """
    stage = stage or {EMBEDDING: "embedding", HEAD: "head"}.get(name, "")
    precision, why = recipe.precision_of(name, shape)
    scaled: Scaling = "off"
    if stage not in VOCABULARY and precision.is_narrow and recipe.scales(name):  # with more, nothing is to be spared
        scaled = "weights" if recipe.awq == "weights" else "inputs"
    rank, size = recipe.rank_of(name, shape), recipe.bytes_of(name, shape)
    return Assignment(name, stage, shape, precision, rank, scaled, size, why)
