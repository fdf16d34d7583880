"""What narrower numbers do to the compressed model: the bounds of the self-test, computed at export.

In: the compressed weights of one stage at a time, and hidden states of the golden tokens. Out: hidden states of these
tokens as devices with other numerics would have them; at the end, the golden rows: what every token's logits are in
float32, and how far those of the others are from them. Knows nothing about files, or about which engine does what.

Each of them takes the golden tokens through the whole model once, side by side: unpacking is most of the time.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.export.graph import decoder
from edge.export.graph.emulated import BFLOAT16, FLOAT16, INT8_ACTIVATIONS, EmulatedBuilder
from edge.export.graph.numpy_builder import NumpyBuilder
from edge.export.graph.together import Multiply, together
from edge.export.npz import put_array
from edge.export.tensors import Float32Array, PackedTensor, Weight
from edge.runtime.golden_rows import NOISES, GoldenRows, top_logits
from edge.runtime.spec import ModelSpec

WIDEST_BLOCK = 256  # activations that an engine of ours rounds together, at most (export/graph/onnx/blocks.py)
CACHE_LEVELS = 255  # steps of 8 bits

Make = Callable[[Mapping[str, Weight], ModelSpec], NumpyBuilder]


class _RoundedInputs(EmulatedBuilder):
    """Inputs of products are rounded to 8 bits in the groups of the weights, as ONNX Runtime's kernels do.

    OpenVINO's groups are as large or smaller, which loses less.
    """

    def linear(self, x: Float32Array, name: str) -> Float32Array:
        matrix = self._weights[f"{self._tied.get(name, name)}.weight"]
        if isinstance(matrix, PackedTensor):
            block = min(matrix.group_size & -matrix.group_size, WIDEST_BLOCK)
            self.numerics = replace(INT8_ACTIVATIONS, activation_group=max(block, INT8_ACTIVATIONS.activation_group))
        return super().linear(x, name)


class _RoundedCache(NumpyBuilder):
    """Keys and values have 8 bits: steps of 1/255 between the lowest and the highest of a token's head."""

    def attention(self, qkv: Float32Array, layer: int, spec: ModelSpec) -> Float32Array:
        q, cached = np.split(qkv, [spec.q_size], axis=-1)
        heads = cached.reshape(*cached.shape[:-1], -1, spec.head_dim)
        low = heads.min(axis=-1, keepdims=True)
        step = (heads.max(axis=-1, keepdims=True) - low) / np.float32(CACHE_LEVELS)
        step[step == 0] = 1
        heads = np.rint((heads - low) / step) * step + low
        return super().attention(np.concatenate([q, heads.reshape(cached.shape)], axis=-1), layer, spec)


_MAKES: dict[str, Make] = {
    "f16": lambda weights, spec: EmulatedBuilder(weights, spec, FLOAT16),
    "bf16": lambda weights, spec: EmulatedBuilder(weights, spec, BFLOAT16),
    "int8": lambda weights, spec: _RoundedInputs(weights, spec, INT8_ACTIVATIONS),
    "kv8": _RoundedCache,
}
assert tuple(_MAKES) == NOISES
NUMERICS = len(NOISES)  # streams of hidden states


def embed(packed: Mapping[str, Weight], ids: npt.NDArray[np.int64], spec: ModelSpec) -> Float32Array:
    """(1, T) ids -> (NUMERICS, T, H)."""
    return np.concatenate([make(packed, spec).embedding(ids, "embed") for make in _MAKES.values()])


def block(
    packed: Mapping[str, Weight], exact: Float32Array, hidden: Float32Array, layer: int, spec: ModelSpec
) -> tuple[Float32Array, Float32Array]:
    """One decoder block, with each matrix unpacked once.

    exact: any states (B, T, H) for float32. hidden: those of the other numerics, (NUMERICS, T, H).
    """
    found, *others = _beside(
        lambda builder, states: decoder.block(builder, states, layer, spec), packed, spec, [exact], hidden
    )
    return found, np.concatenate(others)


def head(
    packed: Mapping[str, Weight], exact: list[Float32Array], hidden: Float32Array, spec: ModelSpec
) -> list[Float32Array]:
    """Logits of some states (B, T, H) in float32, then those of the other numerics."""
    return _beside(lambda builder, states: decoder.head(builder, states, spec), packed, spec, exact, hidden)


def _beside(
    compute: Callable[[NumpyBuilder, Float32Array], Float32Array],
    packed: Mapping[str, Weight],
    spec: ModelSpec,
    exact: list[Float32Array],
    hidden: Float32Array,
) -> list[Float32Array]:
    makes: list[Make] = [*(NumpyBuilder for _ in exact), *_MAKES.values()]

    def run(make: Make, states: Float32Array) -> Callable[[Multiply], Float32Array]:
        def with_product(multiply: Multiply) -> Float32Array:
            builder = make(packed, spec)
            builder.multiply = multiply
            return compute(builder, states)

        return with_product

    streams = [*exact, *(states[None] for states in hidden)]
    return together([run(make, states) for make, states in zip(makes, streams, strict=True)])


def golden_rows(ids: npt.NDArray[np.int64], logits: Float32Array, others: list[Float32Array]) -> GoldenRows:
    """Finish: logits (T, vocab) of the compressed model in float32, and of the other numerics.

    Numerics that give NaN or infinity are left out: float16 does where a model passes its largest number.
    """
    top = top_logits(logits)
    divergences = {}
    for name, found in zip(_MAKES, others, strict=True):
        if np.isfinite(found).all():
            divergences[name] = np.maximum(top.kl_divergences(found), 0)  # rounding may leave it below zero
    return GoldenRows(ids, top, divergences)


def write_golden_rows(rows: GoldenRows, path: Path) -> None:
    """Write an .npz: same rows, same bytes."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "ids": rows.ids,
        "top_ids": rows.top.ids,
        "top_logits": rows.top.logits,
        "rest": rows.top.rest,
        **{f"kld_{name}": values.astype(np.float32) for name, values in rows.divergences.items()},
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            put_array(archive, name, array, compressed=True)
