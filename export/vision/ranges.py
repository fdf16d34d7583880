"""How large the values of a picture tower get: what is left of float16's range for devices that compute in it.

In: what a stage computes, in numpy. Out: the largest magnitude of each kind of value, all layers together. Knows
nothing about devices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

from edge.export.graph.tower_numpy import NumpyTowerBuilder
from edge.export.tensors import Float32Array, Weight
from edge.runtime.vision.spec import VisionSpec

_LAYER = re.compile(r"layers\.\d+\.")


class RangeTowerBuilder(NumpyTowerBuilder):
    """A `NumpyTowerBuilder` that keeps the largest magnitudes by kind, like "layers.attn.qkv" and "adapter.proj"."""

    def __init__(self, weights: Mapping[str, Weight], tables: tuple[Float32Array, Float32Array] | None = None) -> None:
        super().__init__(weights, tables)
        self.largest: dict[str, float] = {}
        self._place = ""

    def linear(self, x: Float32Array, name: str) -> Float32Array:
        kind = _LAYER.sub("layers.", name.removeprefix("vision."))
        self._place = kind.rpartition(".")[0]
        return self._kept(kind, super().linear(x, name))

    def gelu(self, x: Float32Array) -> Float32Array:
        return self._kept(f"{self._place}.middle", super().gelu(x))

    def swiglu(self, gate_up: Float32Array, width: int) -> Float32Array:
        return self._kept(f"{self._place}.middle", super().swiglu(gate_up, width))

    def attention(self, qkv: Float32Array, spec: VisionSpec) -> Float32Array:
        """Scores are bounded by the lengths of queries and keys, which turning leaves as they are."""
        heads = np.linalg.norm(qkv.reshape(len(qkv), 3, spec.num_heads, spec.head_dim), axis=-1)
        bound = heads[:, 0].max(axis=0) * heads[:, 1].max(axis=0) / math.sqrt(spec.head_dim)
        self._kept("layers.attn.scores", bound)
        return super().attention(qkv, spec)

    def add(self, a: Float32Array, b: Float32Array) -> Float32Array:
        return self._kept("stream", super().add(a, b))

    def _kept(self, kind: str, values: Float32Array) -> Float32Array:
        largest = float(max(values.max(initial=0), -values.min(initial=0)))  # without a copy
        self.largest[kind] = max(self.largest.get(kind, 0.0), largest)
        return values


def larger(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """The larger of each kind."""
    return {kind: max(a.get(kind, 0.0), b.get(kind, 0.0)) for kind in {**a, **b}}
