"""Weights of a picture tower read out of a checkpoint, one at a time.

In: a VisionSpec, a checkpoint, and a table canonical name -> tensors with their shapes (from `architectures`). Out:
`TowerWeights`. Missing, unexpected and misshapen tensors are errors that name them. Knows nothing about families.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from edge.export.checkpoint.checkpoint import Checkpoint
from edge.export.tensors import FloatArray, to_float32
from edge.export.vision.names import BEGIN, DOWN, END, canonical_shapes
from edge.export.weights.names import Sources
from edge.export.weights.rotation import Rotation
from edge.export.weights.source import check_finite, some_tensors
from edge.runtime.errors import TensorError, plain
from edge.runtime.vision.spec import VisionSpec

LEAVE_OUT = "or export the text alone, with --pictures none"


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of a checkpoint, with the shape that it has to have there."""

    name: str
    shape: tuple[int, ...]


Parts = Mapping[str, tuple[Part, ...]]  # canonical name -> tensors whose rows follow each other


class TowerSource(Protocol):
    """What the later stages read weights of a tower from."""

    @property
    def spec(self) -> VisionSpec:
        """The tower that has these weights."""

    @property
    def sources(self) -> Sources:
        """Tensors of the checkpoint that each weight is made of."""

    def read(self, name: str) -> FloatArray:
        """One weight by its canonical name."""

    def check_finite(self, name: str) -> None:
        """Raises TensorError when what a weight is made of holds NaN or infinity."""


@dataclass(frozen=True)
class TowerWeights:
    """The weights of a checkpoint's tower by canonical name; nothing is read before it is asked for."""

    checkpoint: Checkpoint
    spec: VisionSpec
    parts: Parts

    @cached_property
    def sources(self) -> Sources:
        return {name: tuple(part.name for part in parts) for name, parts in self.parts.items()}

    def read(self, name: str) -> FloatArray:
        """One weight in the dtype it is stored in: a view into the checkpoint where nothing has to be joined."""
        shape = canonical_shapes(self.spec)[name]
        width = shape[1:]
        found = [self.checkpoint.read(part.name).reshape(-1, *width) for part in self.parts[name]]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def check_finite(self, name: str) -> None:
        """Raises TensorError when a weight holds NaN or infinity. Reads all of it."""
        check_finite(self.checkpoint, self.sources[name])


@dataclass(frozen=True)
class RotatedTower:
    """A tower whose rows fit a text model with this rotation of its residual stream; see `weights/rotation.py`."""

    original: TowerWeights
    rotation: Rotation

    @property
    def spec(self) -> VisionSpec:
        return self.original.spec

    @property
    def sources(self) -> Sources:
        return self.original.sources

    def read(self, name: str) -> FloatArray:
        """One weight by its canonical name; in float32 what writes rows."""
        if name == DOWN:
            columns = np.ascontiguousarray(to_float32(self.original.read(name)).T)
            return np.ascontiguousarray(self.rotation.apply(columns).T)
        if name in (BEGIN, END):
            return self.rotation.apply(to_float32(self.original.read(name)))
        return self.original.read(name)

    def check_finite(self, name: str) -> None:
        self.original.check_finite(name)


def map_tower(checkpoint: Checkpoint, spec: VisionSpec, parts: Parts, prefix: str) -> TowerWeights:
    """Check a checkpoint against the canonical set. Raises TensorError that names every offending tensor's first few.

    prefix: of the names of all tensors of the tower.
    """
    wanted = {part.name: part.shape for all_parts in parts.values() for part in all_parts}
    found = {name: shape for name, shape in checkpoint.shapes.items() if name.startswith(prefix)}
    if missing := sorted(wanted.keys() - found.keys()):
        raise TensorError(
            f"{checkpoint.path}: {some_tensors(missing)} missing; the picture tower is incomplete, download it again, "
            f"{LEAVE_OUT}"
        )
    if unexpected := sorted(found.keys() - wanted.keys()):
        raise TensorError(
            f"{checkpoint.path}: {some_tensors(unexpected)} unexpected; this is not the picture tower its config "
            f"describes; export the text alone, with --pictures none"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise TensorError(
                f"{checkpoint.path}: {plain(name)} {list(found[name])}, expected {list(shape)}; config and weights "
                f"disagree; download them again, {LEAVE_OUT}"
            )
    checkpoint.check_readable(wanted)
    return TowerWeights(checkpoint, spec, parts)
