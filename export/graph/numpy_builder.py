"""The decoder computed in plain numpy, in float32: what graphs and engines are compared with.

In: weights, float or packed, and hidden states of a few tokens. Out: hidden states or logits. Weights may stay in a
mapped file: a matrix is widened to float32 some rows at a time. Knows nothing about engines or about how weights were
compressed, so that an error in either cannot hide here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.export.graph import decoder
from edge.export.graph.together import Multiply, multiply
from edge.export.tensors import Float32Array, PackedTensor, Weight, rows_of, to_float32
from edge.runtime.spec import ModelSpec


class NumpyBuilder:
    """Computes `decoder.Builder` operations at once, for the tokens at positions 0 to T - 1."""

    def __init__(self, weights: Mapping[str, Weight], spec: ModelSpec, multiply: Multiply = multiply) -> None:
        self._weights, self.multiply = weights, multiply
        self._tied = {"lm_head": "embed"} if spec.tied_embeddings else {}
        self._residual_scale = np.float32(2.0**-spec.residual_exponent)
        self._safe_norms = spec.safe_norms

    def embedding(self, ids: npt.NDArray[Any], name: str) -> Float32Array:  # ids: integers, though V is Float32Array
        matrix = self._weights[f"{name}.weight"]
        rows = [rows_of(matrix, i, i + 1) for i in ids.ravel().tolist()]
        found: Float32Array = np.concatenate(rows).reshape(*ids.shape, -1)
        return found if self._residual_scale == 1 else found * self._residual_scale

    def linear(self, x: Float32Array, name: str) -> Float32Array:
        matrix = self._weights[f"{self._tied.get(name, name)}.weight"]
        n, k = matrix.shape
        y = self.multiply(matrix, np.ascontiguousarray(x.reshape(-1, k).T))
        out: Float32Array = y.T.reshape(*x.shape[:-1], n)  # a copy, in the order of x
        return out + self._vector(f"{name}.bias") if f"{name}.bias" in self._weights else out

    def rms_norm(self, x: Float32Array, name: str, eps: float) -> Float32Array:
        step, more = self._step, np.asarray(eps, np.float32)
        if self._safe_norms:
            least = step(np.asarray(np.sqrt(more), np.float32))
            largest = np.maximum(np.abs(x).max(axis=-1, keepdims=True), least)
            x, more = step(x / largest), step(np.square(step(least / largest)))
        mean: Float32Array = np.mean(step(np.square(x)), axis=-1, keepdims=True)
        scale = step(np.float32(1) / step(np.sqrt(step(step(mean) + more))))
        normed: Float32Array = step(x * scale) * self._vector(f"{name}.weight")
        return normed

    def _step(self, values: Float32Array) -> Float32Array:
        """What is kept of a value inside a norm: all of it."""
        return values

    def qk_norm(self, qkv: Float32Array, name: str, spec: ModelSpec) -> Float32Array:
        q, k, v = np.split(qkv, [spec.q_size, spec.q_size + spec.kv_size], axis=-1)

        def normed(x: Float32Array, norm: str) -> Float32Array:
            heads = x.reshape(*x.shape[:-1], -1, spec.head_dim)
            return self.rms_norm(heads, f"{name}.{norm}", spec.rms_norm_eps).reshape(x.shape)

        return np.concatenate([normed(q, "q_norm"), normed(k, "k_norm"), v], axis=-1)

    def attention(self, qkv: Float32Array, layer: int, spec: ModelSpec) -> Float32Array:  # noqa: ARG002
        batch, tokens, _ = qkv.shape
        heads = qkv.reshape(batch, tokens, -1, spec.head_dim).swapaxes(1, 2)  # (B, n + 2 n_kv, T, head_dim)
        turning, repeats = spec.num_heads + spec.num_kv_heads, spec.num_heads // spec.num_kv_heads
        qk = _rotate(heads[:, :turning], spec)
        out = np.empty((batch, tokens, spec.num_heads, spec.head_dim), np.float32)
        future = np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)
        for row, head in np.ndindex(batch, spec.num_heads):  # scores of one head stay in a core's cache
            key = head // repeats
            scores = qk[row, head] @ qk[row, spec.num_heads + key].T  # (T, T)
            scores /= np.float32(math.sqrt(spec.head_dim))
            scores += future
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            np.matmul(scores, heads[row, turning + key], out=out[row, :, head])
        return out.reshape(batch, tokens, spec.q_size)

    def swiglu(self, gate_up: Float32Array, spec: ModelSpec) -> Float32Array:  # noqa: ARG002
        gate, up = np.split(gate_up, 2, axis=-1)
        with np.errstate(over="ignore"):  # exp of a large number is infinity, and its reciprocal 0
            activated: Float32Array = gate / (1 + np.exp(-gate)) * up
        return activated

    def add(self, a: Float32Array, b: Float32Array, name: str) -> Float32Array:  # noqa: ARG002
        return a + b

    def _vector(self, name: str) -> Float32Array:
        values = self._weights[name]
        assert not isinstance(values, PackedTensor), "norms and biases are never packed"
        return to_float32(values)


def embed(weights: Mapping[str, Weight], ids: npt.NDArray[np.int64], spec: ModelSpec) -> Float32Array:
    """(B, T) ids -> (B, T, H)."""
    return NumpyBuilder(weights, spec).embedding(ids, "embed")


def block(weights: Mapping[str, Weight], hidden: Float32Array, layer: int, spec: ModelSpec) -> Float32Array:
    """One decoder block: (B, T, H) -> (B, T, H)."""
    return decoder.block(NumpyBuilder(weights, spec), hidden, layer, spec)


def head(weights: Mapping[str, Weight], hidden: Float32Array, spec: ModelSpec) -> Float32Array:
    """(B, T, H) -> logits (B, T, vocab_size)."""
    return decoder.head(NumpyBuilder(weights, spec), hidden, spec)


def _rotate(x: Float32Array, spec: ModelSpec) -> Float32Array:
    """Rotary embedding of (B, n, T, head_dim), halves against each other; angles in float32 as the graph has them."""
    rotary, half = spec.rotary_dim, spec.rotary_dim // 2
    angles = np.arange(x.shape[2], dtype=np.float32)[:, None] * spec.inverse_frequencies()
    cos, sin = np.cos(angles), np.sin(angles)  # (T, rotary / 2)
    first, second = x[..., :half], x[..., half:rotary]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, x[..., rotary:]], axis=-1)
