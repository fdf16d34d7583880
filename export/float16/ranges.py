"""How large everything gets that a device would keep in float16, a block at a time.

In: weights, float or packed, what each matrix is rounded to, and tokens of real text. Out: `Ranges`: for every block
the largest magnitude of each kind of value, and the smallest scales of its matrices. Memory is that of one block.
Computes in float32, and knows nothing about what is done about values that are too large.

For a matrix that is to get 4 bits, the sum over a group of activations times integers is taken to be that of
activations times weights over the group's step: rounding moves it by little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.export.compress.precision import Precision
from edge.export.compress.rounding import ranges, steps
from edge.export.graph import decoder
from edge.export.graph.numpy_builder import NumpyBuilder
from edge.export.graph.together import CHUNK_ELEMENTS
from edge.export.tensors import Float32Array, PackedTensor, Weight, integers_of, rows_of
from edge.runtime.spec import ModelSpec

# Kinds of values. RESIDUAL is the stream and what is added to it; OUTPUT is that before norms of their own.
RESIDUAL, OUTPUT, UP, GATE, QUERY, VALUES, SQUARES = (
    "residual",
    "output",
    "up",
    "gate",
    "query and key",
    "values",
    "squares of the residual",
)
# Of norms that read other values than the stream.
OUTPUT_SQUARES, HEAD_SQUARES = "squares of outputs", "squares of heads"
NORMS = {"out_norm": OUTPUT_SQUARES, "q_norm": HEAD_SQUARES, "k_norm": HEAD_SQUARES}
QKV, OUT, GATE_UP, DOWN, HEAD = "qkv", "o", "gate_up", "down", "head"  # matrices
MATRICES = {"attn.qkv": QKV, "attn.o": OUT, "mlp.gate_up": GATE_UP, "mlp.down": DOWN, "lm_head": HEAD}
SMALLEST = 2.0**-14  # float16 numbers below it have fewer bits


def input_of(matrix: str) -> str:
    """The kind of a matrix's input."""
    return f"input of {matrix}"


def sums_of(matrix: str) -> str:
    """The kind of the sums, over a group, of a matrix's inputs times its integers."""
    return f"sums of {matrix}"


@dataclass(frozen=True, slots=True)
class Ranges:
    """The largest magnitudes, by kind; and the smallest scales, by the rows that they belong to."""

    blocks: tuple[Mapping[str, float], ...]
    outside: Mapping[str, float]  # of the embedding and the head
    scales: tuple[Mapping[str, float], ...]  # of a block: UP, VALUES, OUT, DOWN, of those that are rounded

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ranges:  # JSON, as to_json gives it
        return cls(tuple(data["blocks"]), data["outside"], tuple(data["scales"]))

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @property
    def kinds(self) -> dict[str, float]:
        """The largest magnitude of every kind in the whole model; infinite where a value is no number."""
        found: dict[str, float] = {}
        for part in (self.outside, *self.blocks):
            for kind, value in part.items():
                found[kind] = max(found.get(kind, 0.0), math.inf if math.isnan(value) else value)
        return found


def measure(
    weights: Mapping[str, Weight],
    ids: npt.NDArray[np.int64],
    spec: ModelSpec,
    precisions: Mapping[str, Precision],
    done: Callable[[int], None] = lambda _blocks: None,
) -> Ranges:
    """Ranges over windows of token ids (n, T). done: is told the number of blocks that are done."""
    builder = RangeBuilder(weights, spec, precisions)
    hidden = builder.embedding(ids, "embed")
    outside, blocks, scales = builder.taken()[0], [], []
    for layer in range(spec.num_layers):
        hidden = decoder.block(builder, hidden, layer, spec)
        largest, smallest = builder.taken()
        blocks.append(largest)
        scales.append(smallest)
        done(layer + 1)
    last = builder.rms_norm(hidden, "norm", spec.stream_eps)
    builder.sums(last, "lm_head")
    for kind, value in builder.taken()[0].items():
        outside[kind] = max(outside.get(kind, 0.0), value)
    return Ranges(tuple(blocks), outside, tuple(scales))


class RangeBuilder(NumpyBuilder):
    """Computes the decoder in float32 and notes how large everything gets."""

    def __init__(self, weights: Mapping[str, Weight], spec: ModelSpec, precisions: Mapping[str, Precision]) -> None:
        super().__init__(weights, spec)
        self._spec, self._precisions = spec, precisions
        self._largest: dict[str, float] = {}
        self._scales: dict[str, float] = {}

    def taken(self) -> tuple[dict[str, float], dict[str, float]]:
        """The largest values and the smallest scales since this was called last."""
        found = self._largest, self._scales
        self._largest, self._scales = {}, {}
        return found

    def embedding(self, ids: npt.NDArray[Any], name: str) -> Float32Array:  # ids: integers, as in NumpyBuilder
        return self._see(RESIDUAL, super().embedding(ids, name))

    def linear(self, x: Float32Array, name: str) -> Float32Array:
        spec, y = self._spec, self.sums(x, name)
        kind = MATRICES[name.split(".", 2)[-1]]
        if kind == QKV:
            self._see(QUERY, y[..., : spec.q_size + spec.kv_size])
            self._see(VALUES, y[..., spec.q_size + spec.kv_size :])
        elif kind == GATE_UP:
            self._see(GATE, y[..., : spec.intermediate_size])
            self._see(UP, y[..., spec.intermediate_size :])
        elif spec.output_norms:
            self._see(OUTPUT, y)
        return y

    def rms_norm(self, x: Float32Array, name: str, eps: float) -> Float32Array:
        with np.errstate(over="ignore", invalid="ignore"):
            self._see(NORMS.get(name.rsplit(".", 1)[-1], SQUARES), np.square(x))
            return super().rms_norm(x, name, eps)

    def add(self, a: Float32Array, b: Float32Array, name: str) -> Float32Array:
        return self._see(RESIDUAL, super().add(a, self._see(RESIDUAL, b), name))

    def sums(self, x: Float32Array, name: str) -> Float32Array:
        """The product, group by group where the matrix is to have 4 bits."""
        stored = f"{self._tied.get(name, name)}.weight"
        matrix, precision, kind = self._weights[stored], self._precisions[stored], MATRICES[name.split(".", 2)[-1]]
        self._see(input_of(kind), x)
        if precision.bits == 32:
            return super().linear(x, name)
        n, k = matrix.shape
        group = matrix.group_size if isinstance(matrix, PackedTensor) else precision.group_size or k
        tokens = np.ascontiguousarray(x.reshape(-1, k).T)  # (K, T)
        y, smallest = np.empty((n, tokens.shape[1]), np.float32), np.empty(n, np.float32)
        step = max(CHUNK_ELEMENTS // k, 1)
        for start in range(0, n, step):
            stop = min(start + step, n)
            rows, sizes = _grouped(matrix, start, stop, group, precision)
            smallest[start:stop] = np.where(sizes < SMALLEST, np.inf, sizes).min(axis=-1)
            if precision.bits != 4:
                y[start:stop] = rows_of(matrix, start, stop) @ tokens
            else:
                parts = np.matmul(rows.transpose(1, 0, 2), tokens.reshape(-1, group, tokens.shape[1]))  # (groups, n, T)
                sums = np.abs(parts).max(axis=-1).T  # (n, groups)
                self._note(sums_of(kind), float(np.divide(sums, sizes, where=sizes > 0, out=np.zeros_like(sums)).max()))
                parts.sum(axis=0, out=y[start:stop])
        if isinstance(matrix, PackedTensor) and matrix.low_rank is not None:
            narrow, wide = (rows_of(part, 0, len(part.scale)) for part in (matrix.low_rank.a, matrix.low_rank.b))
            y += wide @ (narrow @ tokens)
        self._note_scales(kind, smallest)
        out: Float32Array = y.T.reshape(*x.shape[:-1], n)
        return out + self._vector(f"{name}.bias") if f"{name}.bias" in self._weights else out

    def swiglu(self, gate_up: Float32Array, spec: ModelSpec) -> Float32Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return super().swiglu(gate_up, spec)

    def _see(self, kind: str, values: Float32Array) -> Float32Array:
        self._note(kind, float(np.abs(values).max()))
        return values

    def _note(self, kind: str, value: float) -> None:
        self._largest[kind] = float(np.maximum(self._largest.get(kind, 0.0), value))  # NaN stays

    def _note_scales(self, kind: str, smallest: Float32Array) -> None:
        """smallest: of every row, infinity where it has none."""
        spec = self._spec
        if kind == QKV:
            kind, smallest = VALUES, smallest[spec.q_size + spec.kv_size :]
        elif kind == GATE_UP:
            kind, smallest = UP, smallest[spec.intermediate_size :]
        if np.isfinite(least := float(smallest.min())):
            self._scales[kind] = least


def _grouped(
    matrix: Weight, start: int, stop: int, group: int, precision: Precision
) -> tuple[Float32Array, Float32Array]:
    """Some rows in groups, (n, groups, group), as their integers mean them, and the size of steps, (n, groups).

    Where float16 is all that a matrix is rounded to, the largest of a row takes the place of a step.
    """
    if isinstance(matrix, PackedTensor):
        scale = matrix.scale[start:stop].astype(np.float32)
        return integers_of(matrix, start, stop) * scale[..., None], np.abs(scale)
    rows = rows_of(matrix, start, stop).reshape(stop - start, -1, group)
    if precision.is_float:
        return rows, np.abs(rows).max(axis=-1)
    return rows, np.abs(steps(*ranges(rows), precision))[..., 0]
