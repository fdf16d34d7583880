"""What a bundle's manifest says of its picture tower.

In: an object of the manifest. Out: a `VisionRecord`, typed and within bounds. Knows nothing about how a tower is
exported or run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge.runtime.json_object import ObjectReader
from edge.runtime.tensor_records import StageCheck, TensorRecord, read_stage_check, read_tensor
from edge.runtime.vision.spec import VisionSpec


@dataclass(frozen=True, slots=True)
class VisionRecord:
    """A tower: its shape, how its weights were compressed, and what the export measured."""

    spec: VisionSpec
    recipe: str  # the name of the one its matrices have
    bits_per_weight: float
    weight_bytes: int
    segments: int  # graphs that follow each other, for each engine
    checks: tuple[StageCheck, ...]
    largest: Mapping[str, float]  # magnitude that each stage's values reached, for the headroom of float16
    tensors: Mapping[str, TensorRecord]

    @classmethod
    def read(cls, read: ObjectReader) -> VisionRecord:
        """Raises BundleError where a field is not of its type."""
        largest = read.inside("largest")
        return cls(
            spec=VisionSpec.from_json(read.value("spec")),
            recipe=read.word("recipe"),
            bits_per_weight=read.number("bits_per_weight", 0),
            weight_bytes=read.whole("weight_bytes"),
            segments=read.whole("segments", 1, 10_000),
            checks=read.listed("checks", read_stage_check),
            largest={name: largest.number(name, 0) for name in largest.names()},
            tensors=read.named("tensors", read_tensor),
        )
