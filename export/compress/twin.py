"""The float model and the compressed one side by side, a block at a time, the second corrected by the difference.

In: hidden states of both, and a block's float weights. Out: hidden states after the block, and its compressed matrices.
Each matrix is fitted to the inputs that compressed blocks give it, but to the outputs of the float model (`drift.py`).
Knows nothing about how a matrix is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edge.export.compress.drift import Drift, find_drift
from edge.export.compress.products import RowProduct
from edge.export.graph.numpy_builder import NumpyBuilder
from edge.export.graph.numpy_parallel import Product, Value, by_window, window_of
from edge.export.parallel import in_parallel
from edge.export.tensors import Float32Array, FloatArray, Weight, rows_of, to_float32
from edge.runtime.spec import ModelSpec

ROWS_PER_CORE = 1 << 8  # of a matrix at a time
# Rounds a matrix, given its name, the matrix (N, K), its inputs (T, K) in the compressed model, and what its outputs
# lack; None where nothing is to be made up for.
Round = Callable[[str, FloatArray, Float32Array, Drift | None], Weight]


class TwinBuilder:
    """A `decoder.Builder` on (2 n, T, ...): n windows of the float model, then the same n of the compressed one.

    A product is computed a window at a time by its consumer, so that only the inputs of matrices are ever in memory as
    a whole.
    """

    def __init__(self, weights: Mapping[str, FloatArray], spec: ModelSpec, round_matrix: Round) -> None:
        self._weights = weights
        self._plain = NumpyBuilder(weights, spec)  # for one window
        self._spec = spec
        self._round = round_matrix
        self._stream: Float32Array | None = None  # residual stream, before the latest norm
        self.packed: dict[str, Weight] = {}

    def embedding(self, ids: Value, name: str) -> Value:  # noqa: ARG002
        raise AssertionError("a block has no embedding")

    def linear(self, x: Value, name: str) -> Value:
        assert isinstance(x, np.ndarray), "norm, attention and swiglu give arrays"
        weight_name, half = f"{name}.weight", len(x) // 2
        adds_to_stream = name.endswith((".attn.o", ".mlp.down")) and not self._spec.output_norms
        weight = to_float32(self._weights[weight_name])
        inputs = x[half:].reshape(-1, x.shape[-1])
        drift = find_drift(weight, x[:half].reshape(inputs.shape), inputs, self._stream if adds_to_stream else None)
        packed = self.packed[weight_name] = self._round(weight_name, weight, inputs, drift)
        bias = self._weights.get(f"{name}.bias")
        return Product(x, RowProduct(weight), RowProduct(_all_rows(packed)), None if bias is None else to_float32(bias))

    def rms_norm(self, x: Value, name: str, eps: float) -> Value:
        if isinstance(x, np.ndarray):
            self._stream = x
        return by_window(lambda window: self._plain.rms_norm(window, name, eps), x)

    def qk_norm(self, qkv: Value, name: str, spec: ModelSpec) -> Value:
        return by_window(lambda window: self._plain.qk_norm(window, name, spec), qkv)

    def attention(self, qkv: Value, layer: int, spec: ModelSpec) -> Value:
        return by_window(lambda window: self._plain.attention(window, layer, spec), qkv)

    def swiglu(self, gate_up: Value, spec: ModelSpec) -> Value:
        return by_window(lambda window: self._plain.swiglu(window, spec), gate_up)

    def add(self, a: Value, b: Value, name: str) -> Value:  # noqa: ARG002
        assert isinstance(a, np.ndarray), "the residual stream"
        out = np.empty_like(a)

        def compute(index: int) -> None:
            np.add(a[index], window_of(b, index)[0], out=out[index])

        in_parallel(compute, range(len(a)))
        return out


def _all_rows(weight: Weight) -> Float32Array:
    """A whole matrix in float32."""
    wide = np.empty(weight.shape, np.float32)

    def widen(start: int) -> None:
        wide[start : start + ROWS_PER_CORE] = rows_of(weight, start, start + ROWS_PER_CORE)

    in_parallel(widen, range(0, len(wide), ROWS_PER_CORE))
    return wide
