"""The decoder computed in plain numpy, in float32: what a graph's results are compared with.

In: float weights, a few rows of hidden states. Out: rows of hidden states or logits. Weights may stay in a mapped file:
a matrix is widened to float32 some rows at a time. Knows nothing about engines or compression, so that an error in
either cannot hide here. Arrays have no batch axis: (T, H).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.export import decoder
from edge.export.tensors import Float32Array, FloatArray, to_float32
from edge.runtime.spec import ModelSpec

CHUNK_ELEMENTS = 1 << 22  # of a matrix in float32 at a time: 16 MB, which the caches still help with


class ReferenceBuilder:
    """Computes `decoder.Builder` operations at once, for the tokens at positions 0 to T - 1."""

    def __init__(self, weights: Mapping[str, FloatArray], spec: ModelSpec) -> None:
        self._weights = weights
        self._tied = {"lm_head": "embed"} if spec.tied_embeddings else {}

    def embedding(self, ids: npt.NDArray[Any], name: str) -> Float32Array:
        rows: FloatArray = self._weights[f"{name}.weight"][ids]
        return to_float32(rows)

    def linear(self, x: Float32Array, name: str) -> Float32Array:
        matrix = self._weights[f"{self._tied.get(name, name)}.weight"]
        rows = max(CHUNK_ELEMENTS // matrix.shape[1], 1)
        y = np.empty((x.shape[0], matrix.shape[0]), np.float32)
        for start in range(0, matrix.shape[0], rows):
            y[:, start : start + rows] = x @ to_float32(matrix[start : start + rows]).T
        bias = self._weights.get(f"{name}.bias")
        return y if bias is None else y + to_float32(bias)

    def rms_norm(self, x: Float32Array, name: str, eps: float) -> Float32Array:
        scale = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps))
        return x * scale * to_float32(self._weights[f"{name}.weight"])

    def attention(self, qkv: Float32Array, layer: int, spec: ModelSpec) -> Float32Array:  # noqa: ARG002
        tokens = qkv.shape[0]
        heads = qkv.reshape(tokens, -1, spec.head_dim).swapaxes(0, 1)  # (n + 2 n_kv, T, head_dim)
        turning = spec.num_heads + spec.num_kv_heads
        qk = _rotate(heads[:turning], spec)
        repeats = spec.num_heads // spec.num_kv_heads
        q, k = qk[: spec.num_heads], np.repeat(qk[spec.num_heads :], repeats, axis=0)
        v = np.repeat(heads[turning:], repeats, axis=0)
        scores = q @ k.swapaxes(1, 2) / np.float32(math.sqrt(spec.head_dim))  # (n, T, T)
        scores[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out = weights / weights.sum(axis=-1, keepdims=True) @ v
        joined: Float32Array = out.swapaxes(0, 1).reshape(tokens, spec.q_size)
        return joined

    def swiglu(self, gate_up: Float32Array, spec: ModelSpec) -> Float32Array:
        gate, up = np.split(gate_up, 2, axis=1)
        with np.errstate(over="ignore"):  # exp of a large number is infinity, and its reciprocal 0
            activated: Float32Array = gate / (1 + np.exp(-gate)) * up
        return activated

    def add(self, a: Float32Array, b: Float32Array, name: str) -> Float32Array:  # noqa: ARG002
        return a + b


def embed(weights: Mapping[str, FloatArray], ids: npt.NDArray[np.int64], spec: ModelSpec) -> Float32Array:
    """(T,) ids -> (T, H)."""
    return ReferenceBuilder(weights, spec).embedding(ids, "embed")


def block(weights: Mapping[str, FloatArray], hidden: Float32Array, layer: int, spec: ModelSpec) -> Float32Array:
    """One decoder block: (T, H) -> (T, H)."""
    return decoder.block(ReferenceBuilder(weights, spec), hidden, layer, spec)


def head(weights: Mapping[str, FloatArray], hidden: Float32Array, spec: ModelSpec) -> Float32Array:
    """(T, H) -> logits (T, vocab_size)."""
    return decoder.head(ReferenceBuilder(weights, spec), hidden, spec)


def _rotate(x: Float32Array, spec: ModelSpec) -> Float32Array:
    """Rotary embedding of (n, T, head_dim), halves against each other; angles in float32 as the graph has them."""
    rotary, half = spec.rotary_dim, spec.rotary_dim // 2
    exponents = np.arange(0, rotary, 2, dtype=np.float64) / rotary
    inverse = (1.0 / np.float64(spec.rope_theta) ** exponents).astype(np.float32)
    angles = np.arange(x.shape[1], dtype=np.float32)[:, None] * inverse
    cos, sin = np.cos(angles), np.sin(angles)  # (T, rotary / 2)
    first, second = x[..., :half], x[..., half:rotary]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, x[..., rotary:]], axis=-1)
