"""Canonical weights read out of a checkpoint, one at a time.

In: a ModelSpec, a checkpoint, and a table canonical name -> tensors (from `architectures`). Out: `Weights`. Missing,
unexpected and misshapen tensors are errors that name them. Knows nothing about particular architectures or formats.

Where a checkpoint has rows of q and k in pairs (2i, 2i + 1), they are reordered to halves (i, i + rotary_dim / 2)
within each head, because engines fuse only that form of rotary embedding; a product of q and k does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge.export.checkpoint.checkpoint import Checkpoint
from edge.export.tensors import Float32Array, FloatArray, to_float32
from edge.export.weights.names import Layout, RotaryLayout, Sources, canonical_shapes
from edge.runtime.errors import TensorError, plain
from edge.runtime.spec import ModelSpec

CHECKED_ROWS = 4096  # of a matrix in float32 at a time


class Change(Protocol):
    """Something that is added to weights, as a LoRA is."""

    def delta(self, name: str) -> Float32Array | None:
        """What is added to the weight of a canonical name, with rows as `Layout.trained` says; None for nothing."""


class WeightSource(Protocol):
    """What the later stages read weights from: a checkpoint's, or those of a rotated one."""

    @property
    def spec(self) -> ModelSpec:
        """The spec of the model that has these weights."""

    @property
    def sources(self) -> Sources:
        """Tensors of the checkpoint that each weight is made of."""

    def read(self, name: str) -> FloatArray:
        """One weight by its canonical name."""

    def check_finite(self, name: str) -> None:
        """Raises TensorError when what a weight is made of holds NaN or infinity."""


class ReadWhenNeeded(Mapping[str, FloatArray]):
    """Some weights by name, each read when it is asked for; the last one stays. All of a block's would fill memory."""

    def __init__(self, read: Callable[[str], FloatArray], names: Iterable[str]) -> None:
        self._read, self._names = read, tuple(names)
        self._last: tuple[str, FloatArray] | None = None

    def __getitem__(self, name: str) -> FloatArray:
        if name not in self._names:
            raise KeyError(name)
        last = self._last  # several threads may ask at once
        if last is None or last[0] != name:
            self._last = None  # before the next one is read
            last = self._last = (name, self._read(name))
        return last[1]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Weights:
    """The weights of a checkpoint by canonical name; nothing is read before it is asked for."""

    checkpoint: Checkpoint
    spec: ModelSpec
    sources: Sources
    layout: Layout
    change: Change | None = None  # merged into what is read

    def read(self, name: str) -> FloatArray:
        """One weight in the dtype it is stored in: a view into the checkpoint where nothing has to be joined."""
        parts = [self.checkpoint.read(part) for part in self.sources[name]]
        weight = self._in_halves(name, parts[0] if len(parts) == 1 else np.concatenate(parts), self.layout.stored)
        if self.change is not None and (delta := self.change.delta(name)) is not None:
            delta = self._in_halves(name, delta, self.layout.trained)
            delta += to_float32(weight)
            weight = delta
        return weight

    def _in_halves(self, name: str, weight: FloatArray, layout: RotaryLayout) -> FloatArray:
        return weight[rotary_halves(self.spec)] if layout == "pairs" and ".attn.qkv." in name else weight

    def block(self, layer: int) -> dict[str, FloatArray]:
        """All weights of one decoder block."""
        prefix = f"layers.{layer}."
        return {name: self.read(name) for name in self.sources if name.startswith(prefix)}

    def check_finite(self, name: str) -> None:
        """Raises TensorError when a weight holds NaN or infinity. Reads all of it."""
        check_finite(self.checkpoint, self.sources[name])


def check_finite(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Raises TensorError when one of these tensors holds NaN or infinity. Reads all of them."""
    for name in names:
        stored = checkpoint.read(name)
        for start in range(0, len(stored), CHECKED_ROWS):
            if not np.isfinite(to_float32(stored[start : start + CHECKED_ROWS])).all():
                raise TensorError(f"{plain(name)} holds NaN or infinity; the checkpoint is damaged, download it again")


def map_names(
    checkpoint: Checkpoint, spec: ModelSpec, sources: Sources, layout: Layout, ignored: tuple[str, ...] = ()
) -> Weights:
    """Check a checkpoint against the canonical set. Raises TensorError that names every offending tensor's first few.

    Tensors whose names contain one of `ignored` are allowed and not read. The spec has no more layers than the
    checkpoint has tensors.
    """
    wanted = {part for parts in sources.values() for part in parts}
    if missing := sorted(wanted - checkpoint.shapes.keys()):
        raise TensorError(
            f"{checkpoint.path}: {some_tensors(missing)} missing; the checkpoint is incomplete, download it again"
        )
    others = checkpoint.shapes.keys() - wanted
    if unexpected := sorted(name for name in others if not any(part in name for part in ignored)):
        raise TensorError(
            f"{checkpoint.path}: {some_tensors(unexpected)} unexpected; this is not the architecture its config names, "
            "or it has parts that edgeglm would drop"
        )
    for name, shape in canonical_shapes(spec).items():
        parts = [checkpoint.shapes[part] for part in sources[name]]
        rows = sum(part[0] for part in parts if part)
        if any(len(part) != len(shape) or part[1:] != shape[1:] for part in parts) or rows != shape[0]:
            found = " + ".join(f"{plain(part)} {list(checkpoint.shapes[part])}" for part in sources[name])
            raise TensorError(f"{checkpoint.path}: {found}, expected {list(shape)} in all; config and weights disagree")
    checkpoint.check_readable(wanted)
    return Weights(checkpoint, spec, sources, layout)


def rotary_halves(spec: ModelSpec) -> npt.NDArray[np.int64]:
    """Row order of a joined qkv matrix: rotating dims of q and k from pairs to halves, all else in place."""
    head = np.arange(spec.head_dim)
    head[: spec.rotary_dim] = head[: spec.rotary_dim].reshape(-1, 2).T.ravel()
    turning_heads = spec.num_heads + spec.num_kv_heads
    order = np.arange(spec.q_size + 2 * spec.kv_size)
    order[: turning_heads * spec.head_dim] = (np.arange(turning_heads)[:, None] * spec.head_dim + head).ravel()
    return order


def some_tensors(names: list[str]) -> str:
    """The first few of these names, with their number and a verb."""
    shown = ", ".join(map(plain, names[:3])) + (", ..." if len(names) > 3 else "")
    return f"tensor {shown} is" if len(names) == 1 else f"{len(names)} tensors ({shown}) are"
