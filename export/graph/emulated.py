"""The decoder as a device with narrower numbers would compute it, in numpy: what float16 and its like do to a model.

In: weights, float or packed, and `Numerics`, which say what a device rounds. Out: a builder for `decoder.py` that works
a stage at a time, as `NumpyBuilder` does. Every value that a device keeps in memory is rounded to its type; what passes
float16's largest number becomes infinity, as it does in hardware. Products are summed in float32 unless the numerics
say otherwise. It is no model of a particular kernel, and knows nothing about engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge.export.graph.numpy_builder import NumpyBuilder
from edge.export.graph.together import CHUNK_ELEMENTS
from edge.export.tensors import Float32Array, PackedTensor, Weight, integers_of, rows_of
from edge.runtime.spec import ModelSpec

Kept = Literal["float32", "float16", "bfloat16"]
LARGEST = float(np.finfo(np.float16).max)  # 65,504
INT8 = 127  # the largest number of 8 bits with a sign


@dataclass(frozen=True, slots=True)
class Numerics:
    """What a device rounds."""

    name: str
    kept: Kept = "float32"  # the type of values between operations
    stepwise_norms: bool = False  # each step of a norm is kept; else norms compute in float32 inside
    group_sums: bool = False  # activations times integers of 4 bits are summed in float16, and scaled after each group
    activation_group: int = 0  # inputs of packed matrices that share a scale of 8 bits; 0: inputs are not rounded


FLOAT16 = Numerics("float16", "float16")
FLOAT16_NORMS = Numerics("float16, norms step by step", "float16", stepwise_norms=True)
FLOAT16_SUMS = Numerics("float16, sums of groups as well", "float16", group_sums=True)
BFLOAT16 = Numerics("bfloat16", "bfloat16")
INT8_ACTIVATIONS = Numerics("activations of 8 bits", activation_group=32)  # as OpenVINO's CPU plugin has them


def rounded(values: Float32Array, kept: Kept) -> Float32Array:
    """The nearest numbers of a narrower type, in float32; infinity beyond the largest."""
    if kept == "float16":
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if kept == "bfloat16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        nearest = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))  # ties to even
        nearest &= np.uint32(0xFFFF0000)
        return np.where(np.isfinite(values), nearest.view(np.float32), values)
    return values


class EmulatedBuilder(NumpyBuilder):
    """Computes `decoder.Builder` operations at once, rounding as the numerics say."""

    def __init__(self, weights: Mapping[str, Weight], spec: ModelSpec, numerics: Numerics) -> None:
        super().__init__(weights, spec)
        self.numerics = numerics
        self.not_finite: list[str] = []  # operations that gave infinity or NaN, in their order

    def embedding(self, ids: npt.NDArray[Any], name: str) -> Float32Array:  # ids: integers, as in NumpyBuilder
        with np.errstate(over="ignore", invalid="ignore"):  # rows are kept before they are scaled
            rows = self._round(super().embedding(ids, name) / self._residual_scale)
            return self._keep(rows * self._residual_scale, name)

    def linear(self, x: Float32Array, name: str) -> Float32Array:
        matrix = self._weights[f"{self._tied.get(name, name)}.weight"]
        with np.errstate(over="ignore", invalid="ignore"):
            if not isinstance(matrix, PackedTensor):
                return self._keep(super().linear(x, name), name)
            if self.numerics.activation_group:
                x = _in_8_bits(x, self.numerics.activation_group)
            if not self.numerics.group_sums or matrix.bits != 4:
                return self._keep(super().linear(x, name), name)
            y = self._summed_by_group(x, matrix)
            bias = self._weights.get(f"{name}.bias")
            return self._keep(y if bias is None else y + self._vector(f"{name}.bias"), name)

    def rms_norm(self, x: Float32Array, name: str, eps: float) -> Float32Array:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return self._keep(super().rms_norm(x, name, eps), name)

    def attention(self, qkv: Float32Array, layer: int, spec: ModelSpec) -> Float32Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return self._keep(super().attention(qkv, layer, spec), f"layers.{layer}.attn")

    def swiglu(self, gate_up: Float32Array, spec: ModelSpec) -> Float32Array:  # noqa: ARG002
        with np.errstate(over="ignore", invalid="ignore"):
            gate, up = np.split(gate_up, 2, axis=-1)
            return self._keep(self._round(gate / (1 + np.exp(-gate))) * up, "swiglu")

    def add(self, a: Float32Array, b: Float32Array, name: str) -> Float32Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return self._keep(a + b, name)

    def _step(self, values: Float32Array) -> Float32Array:
        return self._round(values) if self.numerics.stepwise_norms else values

    def _round(self, values: Float32Array) -> Float32Array:
        return rounded(values, self.numerics.kept)

    def _keep(self, values: Float32Array, name: str) -> Float32Array:
        kept = self._round(values)
        if not np.isfinite(kept).all():
            self.not_finite.append(name)
        return kept

    def _summed_by_group(self, x: Float32Array, matrix: PackedTensor) -> Float32Array:
        """(..., K) -> (..., N): the sum over each group is kept before it is scaled, and so is the sum of groups."""
        n, k = matrix.shape
        tokens = x.reshape(-1, k).T.reshape(matrix.groups, matrix.group_size, -1)  # (groups, group, T)
        y = np.zeros((n, tokens.shape[-1]), np.float32)
        step = max(CHUNK_ELEMENTS // k, 1)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            integers = integers_of(matrix, rows.start, rows.stop)  # (rows, groups, group)
            scales = matrix.scale[rows].astype(np.float32)
            for group, inputs in enumerate(tokens):
                scaled = self._round(self._round(integers[:, group] @ inputs) * scales[:, group, None])
                y[rows] = self._round(y[rows] + scaled)
        out = y.T.reshape(*x.shape[:-1], n)
        if matrix.low_rank is not None:
            narrow, wide = (rows_of(part, 0, len(part.scale)) for part in (matrix.low_rank.a, matrix.low_rank.b))
            out = out + self._round(self._round(x @ narrow.T) @ wide.T)
        return out


def _in_8_bits(x: Float32Array, group: int) -> Float32Array:
    """(..., K) in steps of 1/127 of the largest in each group; all of K in one where groups do not divide it."""
    k = x.shape[-1]
    parts = x.reshape(*x.shape[:-1], -1, group if k % group == 0 else k)
    step = np.abs(parts).max(axis=-1, keepdims=True) / np.float32(INT8)
    step[step == 0] = 1
    return np.asarray(np.rint(parts / step) * step, np.float32).reshape(x.shape)
