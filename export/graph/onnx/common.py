"""What both ONNX builders are made of: float weights, heads, rotary embedding.

In: a `GraphWriter`, weights, a ModelSpec. Out: values by name. Standard operators only. B batch, T new tokens, n heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto

from edge.export.graph.onnx.packed import widened
from edge.export.graph.onnx.writer import GraphWriter
from edge.export.tensors import PackedTensor, Weight
from edge.runtime.spec import ModelSpec


class OnnxParts:
    """A writer with the weights and the spec of one decoder."""

    def __init__(self, writer: GraphWriter, weights: Mapping[str, Weight], spec: ModelSpec) -> None:
        self._w = writer
        self._weights = weights
        self._spec = spec
        self._tied = {"lm_head": "embed"} if spec.tied_embeddings else {}

    def _matrix_name(self, linear: str) -> str:
        return f"{self._tied.get(linear, linear)}.weight"

    def _bias(self, linear: str) -> str:
        """The bias of a linear layer, or "" where it has none."""
        return self._float32(f"{linear}.bias") if f"{linear}.bias" in self._weights else ""

    def _float32(self, name: str) -> str:
        """A float weight in float32."""
        weight = self._weights[name]
        assert not isinstance(weight, PackedTensor), f"{name} is packed"
        return widened(self._w, name, weight)

    def _float_rows(self, ids: str, name: str) -> str:
        """(B, T) ids -> (B, T, H), rows of a float matrix."""
        weight = self._weights[name]
        assert not isinstance(weight, PackedTensor), f"{name} is packed"
        rows = self._w.op("Gather", self._w.constant(name, weight), ids, name=f"{name}/rows", axis=0)
        return rows if weight.dtype == np.float32 else self._w.op("Cast", rows, to=TensorProto.FLOAT)

    def _scaled_rows(self, rows: str) -> str:
        """Rows of the embedding as the residual stream has them."""
        exponent = self._spec.residual_exponent
        return self._w.op("Mul", rows, self._w.scalar(2.0**-exponent)) if exponent else rows

    def _below_one(self, x: str, eps: float) -> tuple[str, str]:
        """x over the largest magnitude of its row, and the eps that belongs to it: a norm of both is that of x.

        The largest is taken to be sqrt(eps) at least, so that a row of zeros divides by something.
        """
        w, least = self._w, self._w.scalar(float(np.sqrt(np.float32(eps))))
        largest = w.op("Max", w.op("ReduceMax", w.op("Abs", x), w.ints(-1), keepdims=1), least)
        part = w.op("Div", least, largest)
        return w.op("Div", x, largest), w.op("Mul", part, part)

    def _gate_and_up(self, gate_up: str) -> tuple[str, str]:
        """(B, T, 2 F) -> two of (B, T, F)."""
        width = self._spec.intermediate_size
        gate, up = self._w.ops("Split", gate_up, self._w.ints(width, width), outputs=2, axis=-1)
        return gate, up

    def _angles(self, positions: str) -> tuple[str, str]:
        """cos and sin of position * theta^(-2i / rotary_dim), in float32: (..., 1) int64 -> (..., rotary_dim / 2)."""
        wide = self._w.op("Cast", positions, to=TensorProto.FLOAT)
        turns = self._w.op("Mul", wide, self._w.constant("rotary/inverse", self._spec.inverse_frequencies()))
        return self._w.op("Cos", turns, name="rotary/cos"), self._w.op("Sin", turns, name="rotary/sin")

    def _qk_normed(self, qkv: str, name: str, rms_norm: Callable[[str, str, float], str]) -> str:
        """(B, T, q_size + 2 kv_size) with each head of q and k normed by weights `name`.{q,k}_norm.weight."""
        spec, w = self._spec, self._w
        q, k, v = w.ops("Split", qkv, w.ints(spec.q_size, spec.kv_size, spec.kv_size), outputs=3, axis=-1)

        def normed(x: str, size: int, norm: str) -> str:
            heads = w.op("Reshape", x, w.ints(0, 0, size // spec.head_dim, spec.head_dim))
            return w.op("Reshape", rms_norm(heads, f"{name}.{norm}", spec.rms_norm_eps), w.ints(0, 0, size))

        return w.op("Concat", normed(q, spec.q_size, "q_norm"), normed(k, spec.kv_size, "k_norm"), v, axis=-1)

    def _split_heads(self, qkv: str) -> tuple[str, str]:
        """(B, T, q_size + 2 kv_size) -> q and k (B, n + n_kv, T, head_dim), v (B, n_kv, T, head_dim)."""
        spec, turning = self._spec, self._spec.num_heads + self._spec.num_kv_heads
        heads = self._w.op("Reshape", qkv, self._w.ints(0, 0, turning + spec.num_kv_heads, spec.head_dim))
        heads = self._w.op("Transpose", heads, perm=[0, 2, 1, 3])
        qk, v = self._w.ops("Split", heads, self._w.ints(turning, spec.num_kv_heads), outputs=2, axis=1)
        return qk, v

    def _join_heads(self, x: str, width: int) -> str:
        """(B, n, T, head_dim) -> (B, T, width)."""
        return self._w.op("Reshape", self._w.op("Transpose", x, perm=[0, 2, 1, 3]), self._w.ints(0, 0, width))

    def _rotate(self, x: str, cos: str, sin: str) -> str:
        """Rotary embedding of (B, n, T, head_dim), halves against each other; cos, sin: (B, 1, T, rotary_dim / 2)."""
        half = self._spec.rotary_dim // 2
        sizes = [size for size in (half, half, self._spec.head_dim - self._spec.rotary_dim) if size]
        first, second, *rest = self._w.ops("Split", x, self._w.ints(*sizes), outputs=len(sizes), axis=-1)
        w = self._w
        turned = [
            w.op("Sub", w.op("Mul", first, cos), w.op("Mul", second, sin)),
            w.op("Add", w.op("Mul", second, cos), w.op("Mul", first, sin)),
        ]
        return w.op("Concat", *turned, *rest, axis=-1)
