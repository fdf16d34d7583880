"""The decoder as an OpenVINO graph, built op by op; nothing is traced.

In: weights by canonical name, which have to outlive the graph, and positions. Out: a builder for `decoder.py`, whose
values are nodes, and the state variables of a KV cache. Knows nothing about whole models, checkpoints, recipes or how
weights were compressed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import openvino as ov
import openvino.opset13 as op

from edge.export.graph.openvino.ops import (
    _as_float,
    causal_mask,
    f32,
    float_constant,
    i64,
    matrix,
    packed_constant,
    repeat_kv,
    rotary_angles,
    scaled_rows,
    slice_last,
)
from edge.export.tensors import PackedTensor, Weight
from edge.runtime.graph_names import past_name, present_name
from edge.runtime.spec import ModelSpec


class OpenVINOBuilder:
    """Emits `decoder.Builder` operations as OpenVINO nodes.

    With `cache`, attention keeps keys and values in state variables; without it, a call sees only its own tokens.
    """

    def __init__(
        self,
        weights: Mapping[str, Weight],
        position_ids: ov.Node,
        spec: ModelSpec,
        cache: Cache | None = None,
    ) -> None:
        self._weights = weights
        self._spec = spec
        self._cache = cache
        self._tied = {"lm_head": "embed"} if spec.tied_embeddings else {}
        self._matrices: dict[str, ov.Node] = {}
        self._cos, self._sin = rotary_angles(position_ids, spec)

    def embedding(self, ids: ov.Node, name: str) -> ov.Node:
        return scaled_rows(op.gather(self._matrix(f"{name}.weight"), ids, i64(0)), self._spec)

    def linear(self, x: ov.Node, name: str) -> ov.Node:
        matrix = f"{self._tied.get(name, name)}.weight"
        weight = self._weights[matrix]
        y = op.matmul(x, self._matrix(matrix), False, True)
        y.set_friendly_name(name)
        if isinstance(weight, PackedTensor) and weight.low_rank is not None:
            narrow = op.matmul(x, packed_constant(weight.low_rank.a, f"{matrix}/lora_a"), False, True)
            y = op.add(y, op.matmul(narrow, packed_constant(weight.low_rank.b, f"{matrix}/lora_b"), False, True))
        bias = self._weights.get(f"{name}.bias")
        return y if bias is None else op.add(y, float_constant(_as_float(bias)[None, None], f"{name}.bias"))

    def rms_norm(self, x: ov.Node, name: str, eps: float) -> ov.Node:
        more = f32(eps)
        if self._spec.safe_norms:
            least = f32(np.sqrt(np.float32(eps)))
            largest = op.maximum(op.reduce_max(op.abs(x), i64([-1]), keep_dims=True), least)
            x, more = op.divide(x, largest), op.power(op.divide(least, largest), f32(2.0))
        mean = op.reduce_mean(op.power(x, f32(2.0)), i64([-1]), keep_dims=True)
        scaled = op.multiply(x, op.divide(f32(1.0), op.sqrt(op.add(mean, more))))
        gamma = _as_float(self._weights[f"{name}.weight"])
        return op.multiply(scaled, float_constant(gamma[None, None], f"{name}.weight"))

    def qk_norm(self, qkv: ov.Node, name: str, spec: ModelSpec) -> ov.Node:
        sizes = [spec.q_size, spec.kv_size, spec.kv_size]
        q, k, v = op.variadic_split(qkv, i64(-1), i64(sizes)).outputs()

        def normed(x: ov.Node, size: int, norm: str) -> ov.Node:
            heads = op.reshape(x, i64([0, 0, size // spec.head_dim, spec.head_dim]), True)
            return op.reshape(self.rms_norm(heads, f"{name}.{norm}", spec.rms_norm_eps), i64([0, 0, size]), True)

        return op.concat([normed(q, spec.q_size, "q_norm"), normed(k, spec.kv_size, "k_norm"), v], -1)

    def attention(self, qkv: ov.Node, layer: int, spec: ModelSpec) -> ov.Node:
        heads = spec.num_heads + 2 * spec.num_kv_heads
        qkv = op.transpose(op.reshape(qkv, i64([0, 0, heads, spec.head_dim]), True), i64([0, 2, 1, 3]))
        # q and k turn together: half the nodes of two rotations, which compile time shows.
        qk, v = op.variadic_split(qkv, i64(1), i64([spec.num_heads + spec.num_kv_heads, spec.num_kv_heads])).outputs()
        q, k = op.variadic_split(
            self._rotate(qk, spec), i64(1), i64([spec.num_heads, spec.num_kv_heads])
        ).outputs()  # (B, n, T, head_dim), (B, n_kv, T, head_dim)
        if self._cache is not None:
            k = self._cache.append(k, layer, "key", spec)
            v = self._cache.append(v, layer, "value", spec)
            out = op.scaled_dot_product_attention(q, repeat_kv(k, spec), repeat_kv(v, spec), self._cache.mask)
        else:
            out = op.scaled_dot_product_attention(q, repeat_kv(k, spec), repeat_kv(v, spec), causal=True)
        return op.reshape(op.transpose(out, i64([0, 2, 1, 3])), i64([0, 0, spec.q_size]), True)

    def swiglu(self, gate_up: ov.Node, spec: ModelSpec) -> ov.Node:
        split = op.variadic_split(gate_up, i64(-1), i64([spec.intermediate_size, spec.intermediate_size]))
        return op.multiply(op.swish(split.output(0)), split.output(1))

    def add(self, a: ov.Node, b: ov.Node, name: str) -> ov.Node:
        total = op.add(a, b)
        total.set_friendly_name(name)
        return total

    def _matrix(self, name: str) -> ov.Node:
        if name not in self._matrices:  # a tied embedding is one constant with two readers
            self._matrices[name] = matrix(self._weights[name], name)
        return self._matrices[name]

    def _rotate(self, x: ov.Node, spec: ModelSpec) -> ov.Node:
        """Rotary embedding, first half against second half of the rotating dims; the other dims pass through."""
        rotary, half = spec.rotary_dim, spec.rotary_dim // 2
        turning = x if rotary == spec.head_dim else slice_last(x, 0, rotary)
        crossed = op.concat(
            [op.multiply(slice_last(turning, half, rotary), f32(-1.0)), slice_last(turning, 0, half)], -1
        )
        turned = op.add(op.multiply(turning, self._cos), op.multiply(crossed, self._sin))
        return turned if rotary == spec.head_dim else op.concat([turned, slice_last(x, rotary, spec.head_dim)], -1)


class Cache:
    """Keys and values of all layers as state variables, reordered by beam_idx; also holds the attention mask."""

    def __init__(self, input_ids: ov.Node, attention_mask: ov.Node, beam_idx: ov.Node, spec: ModelSpec) -> None:
        self.sinks: list[ov.Node] = []
        self._beam_idx = beam_idx
        ids_shape = op.shape_of(input_ids)
        shape = [op.gather(ids_shape, i64([0]), i64(0)), i64([spec.num_kv_heads]), i64([0]), i64([spec.head_dim])]
        self._empty = op.broadcast(f32(0.0), op.concat(shape, 0))  # one start for all layers: fewer nodes to load
        self.mask = causal_mask(op.gather(ids_shape, i64(1), i64(0)), attention_mask)

    def append(self, new: ov.Node, layer: int, kind: str, spec: ModelSpec) -> ov.Node:
        """(B, n_kv, T, head_dim) -> (B, n_kv, past + T, head_dim)."""
        name = past_name(f"{layer}.{kind}") + present_name(f"{layer}.{kind}")  # optimum-intel's naming
        past = op.read_value(
            self._empty, name, ov.Type.f32, ov.PartialShape([-1, spec.num_kv_heads, -1, spec.head_dim])
        )
        past = op.gather(past, self._beam_idx, i64(0))
        full = op.concat([past, new], 2)
        self.sinks.append(op.assign(full, name))
        return full
