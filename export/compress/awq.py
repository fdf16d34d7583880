"""AWQ: channels of a block's matrices are scaled up, and their inputs down, so that rounding spares the busy ones.

In: a decoder block's float weights, the `Precision` of each matrix that may be scaled, and hidden states that the block
will meet. Out: float weights of the same block function. Knows nothing about how matrices are rounded later, or about
files.

Rounding errs by a share of the largest weights in a group, whatever the input. A channel whose inputs are large is
therefore multiplied by s > 1 in the matrix, and its input by 1 / s in what makes the input: the norm before qkv and
gate_up, the rows of `up` before down, those of `v` before o. It costs nothing at run time and changes no graph. The
scales are powers of the mean input, s = mean|x|^a, with the power for which rounding to nearest loses least of the
product (Lin et al., AWQ, arXiv 2306.00978; of the authors' code the search without their clipping). Without hidden
states they are 1 / mean|w|, as nncf's data-free AWQ has them (_data_free_step of its awq.py, 3.4.0): training makes
weights small where inputs are large.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge.export.compress.precision import Precision
from edge.export.compress.rounding import nearest
from edge.export.graph import decoder
from edge.export.graph.numpy_parallel import ParallelBuilder
from edge.export.parallel import in_parallel
from edge.export.tensors import Float32Array, FloatArray, Weight, to_float32
from edge.export.weights.source import ReadWhenNeeded
from edge.runtime.errors import RecipeError
from edge.runtime.spec import ModelSpec

SEARCHED_TOKENS = 2048  # that scales are searched with
SEARCHED_ROWS = 512  # of a matrix, at most, that they are searched with: spread over all of it
SUMMED_ROWS = 512  # of a matrix in float32 at a time
POWERS = tuple(np.linspace(0, 1, 11).tolist())  # 0: nothing is scaled
SMALLEST = 1e-2  # size of a channel, over that of all: one that is never used does not get a scale of 0
BITS = 4  # with more, there is nothing to spare


def fold(
    weights: Mapping[str, FloatArray],
    layer: int,
    spec: ModelSpec,
    precisions: Mapping[str, Precision],
    hidden: Float32Array | None,
) -> ReadWhenNeeded:
    """The block's weights, with scales folded in when they are read; those that change become float32 copies.

    weights: of this layer, by canonical name. precisions: of the matrices whose channels may be scaled. hidden:
    (n, T, H), before the block, of which the first SEARCHED_TOKENS are used; None: scales come from weights. Raises
    RecipeError where activations are not finite.
    """
    prefix = f"layers.{layer}"
    inputs = None if hidden is None else _inputs(weights, hidden, layer, spec)
    found: dict[str, list[tuple[slice, FloatArray]]] = {}

    def scales(matrix: str) -> Float32Array | None:
        name = f"{prefix}.{matrix}.weight"
        if name not in precisions:
            return None
        channels = shared_channels(name, spec)
        if inputs is None:
            return scales_of_weights(weights[name], precisions[name], channels)
        return scales_of_inputs(weights[name], inputs[name], precisions[name], channels)

    def multiply(name: str, by: FloatArray, rows: slice = slice(None)) -> None:
        """Scale some rows of a matrix, or entries of a vector."""
        name = f"{prefix}.{name}"
        if name in weights:  # biases need not be there
            found.setdefault(name, []).append((rows, by))

    for reader, norm in (("attn.qkv", "input_norm"), ("mlp.gate_up", "post_norm")):
        if (s := scales(reader)) is not None:
            multiply(f"{reader}.weight", s)
            multiply(f"{norm}.weight", 1 / s)
    if (s := scales("mlp.down")) is not None:
        multiply("mlp.down.weight", s)
        up = slice(spec.intermediate_size, None)  # gate goes through silu, which no scale passes
        multiply("mlp.gate_up.weight", 1 / s[:, None], up)
    if (s := scales("attn.o")) is not None:
        multiply("attn.o.weight", s)
        each = s.reshape(shared_channels("attn.o.weight", spec))[:, 0].ravel()  # (kv_size,)
        v = slice(spec.q_size + spec.kv_size, None)
        multiply("attn.qkv.weight", 1 / each[:, None], v)
        multiply("attn.qkv.bias", 1 / each, v)

    def read(name: str) -> FloatArray:
        weight = weights[name]
        if name not in found:
            return weight
        folded = np.array(weight, np.float32)
        for rows, by in found[name]:
            folded[rows] *= by
        return folded

    return ReadWhenNeeded(read, weights)


def shared_channels(name: str, spec: ModelSpec) -> tuple[int, int, int]:
    """(g, n, m) with g n m = K of a block's matrix; the n channels that differ in the second index only share a scale.

    That is because several query heads read the values of one key-value head.
    """
    if name.endswith("attn.o.weight"):
        return spec.num_kv_heads, spec.num_heads // spec.num_kv_heads, spec.head_dim
    return 1, 1, spec.intermediate_size if name.endswith("mlp.down.weight") else spec.hidden_size


def scales_of_weights(weight: FloatArray, precision: Precision, channels: tuple[int, int, int]) -> Float32Array | None:
    """Scales (K,) for a matrix (N, K) that bring its channels to one size; None where they would spare nothing."""
    if precision.bits != BITS:
        return None
    total = np.zeros(weight.shape[1])
    for start in range(0, len(weight), SUMMED_ROWS):
        total += np.abs(to_float32(weight[start : start + SUMMED_ROWS])).sum(axis=0, dtype=np.float64)
    size = _shared(total.astype(np.float32), channels)
    if not size.any():
        return None
    scales: Float32Array = size.mean() / np.maximum(size, SMALLEST * size.mean())
    return scales


def _inputs(
    weights: Mapping[str, FloatArray], hidden: Float32Array, layer: int, spec: ModelSpec
) -> dict[str, Float32Array]:
    """The inputs (T, K) of the block's matrices in the float model."""
    inputs: dict[str, Float32Array] = {}

    def record(name: str, tokens: Float32Array) -> Weight:
        inputs[name] = tokens
        return weights[name]

    windows = max(SEARCHED_TOKENS // hidden.shape[1], 1)
    decoder.block(ParallelBuilder(weights, spec, record), hidden[:windows, :SEARCHED_TOKENS], layer, spec)
    return inputs


def scales_of_inputs(
    weight: FloatArray, inputs: Float32Array, precision: Precision, channels: tuple[int, int, int]
) -> Float32Array | None:
    """Scales (K,) for a matrix (N, K) and its inputs (T, K); None where the matrix is best left as it is.

    Raises RecipeError where inputs are not finite.
    """
    if precision.bits != BITS:
        return None
    size = np.abs(inputs).mean(axis=0)
    if not np.isfinite(size).all():
        raise RecipeError("calibration gave activations that are NaN or infinite; is the checkpoint damaged?")
    size = _shared(size, channels)
    size = np.maximum(size, SMALLEST * size.mean())
    rows = to_float32(weight[:: -(-len(weight) // SEARCHED_ROWS)])
    if not size.any() or not rows.any():
        return None
    tokens = np.ascontiguousarray(inputs.T)

    def scaled(power: float) -> Float32Array:
        """Scales that keep the norm of the rows."""
        s: Float32Array = np.power(size / size.max(), power, dtype=np.float32)
        s *= np.linalg.norm(rows) / np.linalg.norm(rows * s)
        return s

    def loss(power: float) -> float:
        """What the product loses, squared."""
        s = scaled(power)
        scaled_rows = rows * s
        lost = nearest(scaled_rows, precision)
        lost -= scaled_rows
        lost /= s
        return float(np.square(lost @ tokens).sum(dtype=np.float64))

    losses = in_parallel(loss, POWERS)
    best = int(np.argmin(losses))
    return scaled(POWERS[best]) if losses[best] < losses[0] else None


def _shared(size: Float32Array, channels: tuple[int, int, int]) -> Float32Array:
    """The mean over channels that share a scale, for each of them: (K,)."""
    mean = size.reshape(channels).mean(axis=1, keepdims=True)
    return np.broadcast_to(mean, channels).ravel()
