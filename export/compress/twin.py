"""The float model and the compressed one side by side, a block at a time, the second corrected by the difference.

In: hidden states of both, and a block's float weights. Out: hidden states after the block, and its compressed matrices.
Each matrix is fitted to the inputs that compressed blocks give it, but to the outputs of the float model: its weights
are moved to make up for what earlier rounding did to its inputs (as in Arai and Ichikawa, Quantization Error
Propagation, arXiv 2504.09629, and Li et al., GPTAQ, arXiv 2504.02692), and matrices that add to the residual stream
also make up for the error that the stream has by then. Knows nothing about how a matrix is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edge.export.compress.products import Rounded, RowProduct, narrow, over_tokens
from edge.export.graph.numpy_builder import NumpyBuilder
from edge.export.graph.numpy_parallel import Product, Value, by_window, window_of
from edge.export.parallel import in_parallel
from edge.export.tensors import Float32Array, FloatArray, Weight, rows_of, to_float32
from edge.runtime.spec import ModelSpec

ROWS_PER_CORE = 1 << 8  # of a matrix at a time
TOKENS_PER_CORE = 1 << 9  # at a time
SUMMED_TOKENS = 1 << 12  # that are multiplied at a time
PANEL = 1 << 9  # rows of a sum over tokens on one core at a time
# Rounds a matrix, given its name, the matrix (N, K), its inputs x (T, K) in the compressed model, and y^T x (N, K),
# where y (T, N) is what its outputs lack; None where nothing is to be made up for.
Round = Callable[[str, FloatArray, Float32Array, Float32Array | None], Weight]


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
        drift = _drift(weight, x[:half].reshape(inputs.shape), inputs, self._stream if adds_to_stream else None)
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


def _drift(
    weight: Float32Array, floats: Float32Array, inputs: Float32Array, stream: Float32Array | None
) -> Float32Array:
    """(W (x_float - x)^T + (h_float - h)^T) x, (N, K): what outputs lack, times the inputs x (T, K).

    stream: the residual stream h of both models, (2 n, T, N), for matrices that add to it.
    """
    n, k = weight.shape
    if stream is None and n > k:  # the moments of inputs first: fewer products, and no (T, N)
        cross = _over_tokens(lambda rows: floats[rows] - inputs[rows], inputs, (k, k))
        drift = np.empty((n, k), np.float32)

        def multiply(start: int) -> None:
            rows = slice(start, start + ROWS_PER_CORE)
            np.matmul(weight[rows], cross, out=drift[rows])

        in_parallel(multiply, range(0, n, ROWS_PER_CORE))
        return drift

    half = 0 if stream is None else len(stream) // 2
    product = RowProduct(weight)

    def lack(rows: slice) -> Float32Array:
        more = product(floats[rows] - inputs[rows])  # (T, N)
        if stream is not None:
            more += stream[:half].reshape(-1, n)[rows] - stream[half:].reshape(-1, n)[rows]
        return more

    return _over_tokens(lack, inputs, (n, k))


def _over_tokens(make: Callable[[slice], Float32Array], inputs: Float32Array, shape: tuple[int, int]) -> Float32Array:
    """y^T x of this shape for inputs x (T, K) and what is made of the same tokens, summed in a fixed order."""
    m, k = shape
    total = np.zeros(shape, np.float32)
    for first in range(0, len(inputs), SUMMED_TOKENS):
        stop = min(first + SUMMED_TOKENS, len(inputs))
        pieces = [slice(start, min(start + TOKENS_PER_CORE, stop)) for start in range(first, stop, TOKENS_PER_CORE)]
        made = np.empty((stop - first, m), np.float32)

        def fill(rows: slice, made: Float32Array = made, first: int = first) -> None:
            made[rows.start - first : rows.stop - first] = make(rows)

        in_parallel(fill, pieces)
        right = Rounded(inputs[first:stop], narrow=narrow(m * k))

        def add(start: int, made: Float32Array = made, right: Rounded = right) -> None:
            total[start : start + PANEL] += over_tokens(made[:, start : start + PANEL], right)

        in_parallel(add, range(0, m, PANEL))
    return total
