"""The picture tower computed with numpy: the reference that engines and compressed weights are measured against.

In: weights by canonical name, float or packed, and the tower's inputs or hidden states. Out: hidden states and rows, in
float32. Weights may be views into a mapped file: a matrix is widened to float32 some rows at a time. Scores of
attention are made for some rows of one head at a time, so that thousands of patches need little memory. Knows nothing
about engines or about how weights were compressed, so that an error in either cannot hide here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.export.graph import tower
from edge.export.graph.together import CHUNK_ELEMENTS
from edge.export.tensors import Float32Array, PackedTensor, Weight, rows_of, to_float32
from edge.runtime.graph_names import HIDDEN, PATCHES, PLACES, ROTARY_TABLES
from edge.runtime.vision.spec import VisionSpec

Inputs = Mapping[str, npt.NDArray[Any]]  # float32, places also int64, by name; those that a part does not take, too

PIECE_ROWS = 1 << 9  # of an MLP at a time
# Factors of powers from the highest: erf(x) is x + x NEAR(x^2) for x up to 475/512, beyond 1 - exp(x FAR(x) - x).
NEAR = (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1)
FAR = (-1.72853470e-5, 3.83197126e-4, -3.88396438e-3, 2.42546219e-2, -1.06777877e-1, -6.34846687e-1, -1.28717512e-1)


class NumpyTowerBuilder:
    """Computes `tower.Builder` operations at once."""

    def __init__(self, weights: Mapping[str, Weight], tables: tuple[Float32Array, Float32Array] | None = None) -> None:
        """tables: cos and sin of each patch, (n, head_dim / 2)."""
        self._weights = weights
        self._tables = tables

    def linear(self, x: Float32Array, name: str) -> Float32Array:
        matrix = self._weights[f"{name}.weight"]
        n, k = matrix.shape
        y, step = np.empty((len(x), n), np.float32), max(CHUNK_ELEMENTS // k, 1)
        for start in range(0, n, step):
            y[:, start : start + step] = x @ rows_of(matrix, start, start + step).T
        if f"{name}.bias" in self._weights:
            y += self._floats(f"{name}.bias")
        return y

    def layer_norm(self, x: Float32Array, name: str, eps: float) -> Float32Array:
        centred = x - np.mean(x, axis=-1, keepdims=True)
        root = np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + np.float32(eps))
        normed: Float32Array = centred / root * self._floats(f"{name}.weight") + self._floats(f"{name}.bias")
        return normed

    def rms_norm(self, x: Float32Array, name: str, eps: float) -> Float32Array:
        root = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps))
        normed: Float32Array = x / root * self._floats(f"{name}.weight")
        return normed

    def gelu(self, x: Float32Array) -> Float32Array:
        activated: Float32Array = x * np.float32(0.5) * (1 + erf(x * np.float32(math.sqrt(0.5))))
        return activated

    def swiglu(self, gate_up: Float32Array, width: int) -> Float32Array:
        gate, up = gate_up[:, :width], gate_up[:, width:]
        with np.errstate(over="ignore"):  # exp of a large number is infinity, and its reciprocal 0
            activated: Float32Array = gate / (1 + np.exp(-gate)) * up
        return activated

    def attention(self, qkv: Float32Array, spec: VisionSpec) -> Float32Array:
        rows, shape = len(qkv), (len(qkv), 3, spec.num_heads, spec.head_dim)
        heads = np.ascontiguousarray(qkv.reshape(shape).transpose(1, 2, 0, 3))  # (3, heads, n, head_dim)
        if self._tables is not None:
            heads[:2] = _turned(heads[:2], *self._tables)
        heads[0] /= np.float32(math.sqrt(spec.head_dim))
        out = np.empty((rows, spec.num_heads, spec.head_dim), np.float32)
        step = max(CHUNK_ELEMENTS // rows, 1)
        for head, start in ((head, start) for head in range(spec.num_heads) for start in range(0, rows, step)):
            scores = heads[0, head, start : start + step] @ heads[1, head].T  # (some rows, n)
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            out[start : start + step, head] = scores @ heads[2, head]
        return out.reshape(rows, spec.hidden_size)

    def add(self, a: Float32Array, b: Float32Array) -> Float32Array:
        return a + b

    def divide(self, x: Float32Array, number: float) -> Float32Array:
        return x / np.float32(number)

    def first_row(self, name: str) -> Float32Array:
        return self._floats(name, slice(0, 1))

    def chosen_rows(self, name: str, indices: npt.NDArray[Any]) -> Float32Array:  # integers, though V is Float32Array
        return self._floats(name, indices.astype(np.int64))

    def mixed_rows(self, name: str, shares: Float32Array) -> Float32Array:
        mixed: Float32Array = shares @ self._floats(name)
        return mixed

    def join(self, parts: Sequence[Float32Array]) -> Float32Array:
        return np.concatenate(parts)

    def without_first(self, x: Float32Array) -> Float32Array:
        return x[1:]

    def merge(self, x: Float32Array, number: int, width: int) -> Float32Array:
        return np.ascontiguousarray(x.reshape(-1, number, width).swapaxes(1, 2)).reshape(-1, number * width)

    def in_pieces(self, x: Float32Array, function: Callable[[Float32Array], Float32Array]) -> Float32Array:
        return np.concatenate([function(x[start : start + PIECE_ROWS]) for start in range(0, len(x), PIECE_ROWS)])

    def _floats(self, name: str, rows: slice | npt.NDArray[np.int64] = slice(None)) -> Float32Array:
        values = self._weights[name]
        assert not isinstance(values, PackedTensor), f"{name} is never packed"
        return to_float32(values[rows])


def segment(
    weights: Mapping[str, Weight],
    inputs: Inputs,
    spec: VisionSpec,
    layers: range,
    *,
    first: bool,
    last: bool,
) -> Float32Array:
    """Some layers of the tower, with what comes before them if `first` and what comes after if `last`.

    Takes inputs by the names of `runtime/graph_names.py`, those that are not needed as well.
    """
    tables = (inputs[ROTARY_TABLES[0]], inputs[ROTARY_TABLES[1]]) if spec.kind == "glm4v" and layers else None
    x, places = (inputs[PATCHES], inputs[PLACES]) if first else (inputs[HIDDEN], None)
    return tower.part(NumpyTowerBuilder(weights, tables), x, places, spec, layers, first=first, last=last)


def erf(x: Float32Array) -> Float32Array:
    """The error function, within 2e-7 of exact."""
    size = np.abs(x)
    square = np.square(size)
    near = x + x * np.polyval(np.array(NEAR, np.float32), square)
    far = np.float32(1) - np.exp(size * np.polyval(np.array(FAR, np.float32), np.minimum(size, 4)) - size)
    return np.where(size > np.float32(475 / 512), np.copysign(far, x), near)


def _turned(x: Float32Array, cos: Float32Array, sin: Float32Array) -> Float32Array:
    """(..., n, head_dim), the first half of each head against the second."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
