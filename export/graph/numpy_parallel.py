"""The decoder computed with numpy on all cores, one window of tokens after the other.

In: weights by canonical name, and a hook that is given every matrix's inputs. Out: a builder for `decoder.py`. Knows
nothing about compression.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edge.export.graph.numpy_builder import NumpyBuilder
from edge.export.parallel import in_parallel
from edge.export.tensors import Float32Array, Weight, rows_of
from edge.runtime.spec import ModelSpec

ROWS = 1 << 8  # of a matrix in float32 at a time
Multiply = Callable[[Float32Array], Float32Array]  # (T, K) -> (T, N)
MatrixFor = Callable[[str, Float32Array], Weight]  # a matrix's name and inputs (T, K) -> what they are multiplied with


class Product:
    """What a matrix makes of its inputs, window by window: in floats for the first half, packed for the second."""

    def __init__(self, inputs: Float32Array, weight: Multiply, packed: Multiply, bias: Float32Array | None):
        self.inputs, self.weight, self.packed, self.bias = inputs, weight, packed, bias

    def __len__(self) -> int:
        return len(self.inputs)

    def window(self, index: int) -> Float32Array:
        multiply = self.weight if index < len(self.inputs) // 2 else self.packed
        y = multiply(self.inputs[index])[None]
        return y if self.bias is None else y + self.bias


Value = Float32Array | Product


def window_of(x: Value, index: int) -> Float32Array:
    return x.window(index) if isinstance(x, Product) else x[index : index + 1]


def by_window(function: Callable[[Float32Array], Float32Array], x: Value) -> Float32Array:
    """`function` of all windows, one at a time, so that intermediate results stay small."""
    first = function(window_of(x, 0))
    out = np.empty((len(x), *first.shape[1:]), np.float32)
    out[:1] = first

    def compute(index: int) -> None:
        out[index : index + 1] = function(window_of(x, index))

    in_parallel(compute, range(1, len(x)))
    return out


class ParallelBuilder(NumpyBuilder):
    """Computes the decoder with matrices that `matrix_for` returns. Activations are (n, T, ...)."""

    def __init__(self, weights: Mapping[str, Weight], spec: ModelSpec, matrix_for: MatrixFor) -> None:
        super().__init__(weights, spec)
        self._matrix_for = matrix_for
        self.packed: dict[str, Weight] = {}

    def linear(self, x: Float32Array, name: str) -> Float32Array:
        tokens = x.reshape(-1, x.shape[-1])
        weight = self.packed[f"{name}.weight"] = self._matrix_for(f"{name}.weight", tokens)
        n = weight.shape[0]
        y = np.empty((len(tokens), n), np.float32)

        def multiply(start: int) -> None:
            y[:, start : start + ROWS] = tokens @ rows_of(weight, start, start + ROWS).T

        in_parallel(multiply, range(0, n, ROWS))
        if f"{name}.bias" in self._weights:
            y += self._vector(f"{name}.bias")
        return y.reshape(*x.shape[:-1], n)

    def rms_norm(self, x: Float32Array, name: str, eps: float) -> Float32Array:
        return by_window(lambda window: super(ParallelBuilder, self).rms_norm(window, name, eps), x)

    def attention(self, qkv: Float32Array, layer: int, spec: ModelSpec) -> Float32Array:
        return by_window(lambda window: super(ParallelBuilder, self).attention(window, layer, spec), qkv)

    def swiglu(self, gate_up: Float32Array, spec: ModelSpec) -> Float32Array:
        return by_window(lambda window: super(ParallelBuilder, self).swiglu(window, spec), gate_up)

    def add(self, a: Float32Array, b: Float32Array, name: str) -> Float32Array:  # noqa: ARG002
        b += a  # nothing else uses b: the output of a product or of a norm
        return b
