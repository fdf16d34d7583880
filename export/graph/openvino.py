"""The decoder as an OpenVINO graph, built op by op; nothing is traced.

In: a ModelSpec and a mapping from canonical weight name to weight, which has to outlive the graph. Out: `ov.Model`s:
the stateful decoder that a bundle holds, and small stateless ones (one block, one linear, the head) for compression and
verification. Knows nothing about checkpoints, recipes or how weights were compressed.

Inputs of the stateful decoder are those of optimum-intel's exports, so that openvino_genai, optimum-intel and OpenVINO
Model Server open it: input_ids (B, T), attention_mask (B, past + T), position_ids (B, T), beam_idx (B,).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset13 as op

from edge.export import decoder
from edge.export.tensors import BFLOAT16, FloatArray, PackedTensor, Weight
from edge.runtime.graph_names import HIDDEN, SPEC, past_name, present_name
from edge.runtime.spec import ModelSpec

# Masked attention scores. Finite, so that a row that is all padding gives numbers and not NaN; fits in float16.
MASKED = -65504.0


class OpenVINOBuilder:
    """Emits `decoder.Builder` operations as OpenVINO nodes.

    With `cache`, attention keeps keys and values in state variables; without it, a call sees only its own tokens.
    """

    def __init__(
        self,
        weights: Mapping[str, Weight],
        position_ids: ov.Node,
        spec: ModelSpec,
        cache: _Cache | None = None,
    ) -> None:
        self._weights = weights
        self._cache = cache
        self._tied = {"lm_head": "embed"} if spec.tied_embeddings else {}
        self._matrices: dict[str, ov.Node] = {}
        self._cos, self._sin = _rotary_angles(position_ids, spec)

    def embedding(self, ids: ov.Node, name: str) -> ov.Node:
        return op.gather(self._matrix(f"{name}.weight"), ids, _i64(0))

    def linear(self, x: ov.Node, name: str) -> ov.Node:
        matrix = f"{self._tied.get(name, name)}.weight"
        weight = self._weights[matrix]
        y = op.matmul(x, self._matrix(matrix), False, True)
        y.set_friendly_name(name)
        if isinstance(weight, PackedTensor) and weight.low_rank is not None:
            narrow = op.matmul(x, _packed_constant(weight.low_rank.a, f"{matrix}/lora_a"), False, True)
            y = op.add(y, op.matmul(narrow, _packed_constant(weight.low_rank.b, f"{matrix}/lora_b"), False, True))
        bias = self._weights.get(f"{name}.bias")
        return y if bias is None else op.add(y, _float_constant(_as_float(bias)[None, None], f"{name}.bias"))

    def rms_norm(self, x: ov.Node, name: str, eps: float) -> ov.Node:
        mean = op.reduce_mean(op.power(x, _f32(2.0)), _i64([-1]), keep_dims=True)
        scaled = op.multiply(x, op.divide(_f32(1.0), op.sqrt(op.add(mean, _f32(eps)))))
        gamma = _as_float(self._weights[f"{name}.weight"])
        return op.multiply(scaled, _float_constant(gamma[None, None], f"{name}.weight"))

    def attention(self, qkv: ov.Node, layer: int, spec: ModelSpec) -> ov.Node:
        heads = spec.num_heads + 2 * spec.num_kv_heads
        qkv = op.transpose(op.reshape(qkv, _i64([0, 0, heads, spec.head_dim]), True), _i64([0, 2, 1, 3]))
        # q and k turn together: half the nodes of two rotations, which compile time shows.
        qk, v = op.variadic_split(qkv, _i64(1), _i64([spec.num_heads + spec.num_kv_heads, spec.num_kv_heads])).outputs()
        q, k = op.variadic_split(
            self._rotate(qk, spec), _i64(1), _i64([spec.num_heads, spec.num_kv_heads])
        ).outputs()  # (B, n, T, head_dim), (B, n_kv, T, head_dim)
        if self._cache is not None:
            k = self._cache.append(k, layer, "key", spec)
            v = self._cache.append(v, layer, "value", spec)
            out = op.scaled_dot_product_attention(q, _repeat_kv(k, spec), _repeat_kv(v, spec), self._cache.mask)
        else:
            out = op.scaled_dot_product_attention(q, _repeat_kv(k, spec), _repeat_kv(v, spec), causal=True)
        return op.reshape(op.transpose(out, _i64([0, 2, 1, 3])), _i64([0, 0, spec.q_size]), True)

    def swiglu(self, gate_up: ov.Node, spec: ModelSpec) -> ov.Node:
        split = op.variadic_split(gate_up, _i64(-1), _i64([spec.intermediate_size, spec.intermediate_size]))
        return op.multiply(op.swish(split.output(0)), split.output(1))

    def add(self, a: ov.Node, b: ov.Node, name: str) -> ov.Node:
        total = op.add(a, b)
        total.set_friendly_name(name)
        return total

    def _matrix(self, name: str) -> ov.Node:
        if name not in self._matrices:  # a tied embedding is one constant with two readers
            self._matrices[name] = _matrix(self._weights[name], name)
        return self._matrices[name]

    def _rotate(self, x: ov.Node, spec: ModelSpec) -> ov.Node:
        """Rotary embedding, first half against second half of the rotating dims; the other dims pass through."""
        rotary, half = spec.rotary_dim, spec.rotary_dim // 2
        turning = x if rotary == spec.head_dim else _slice_last(x, 0, rotary)
        crossed = op.concat(
            [op.multiply(_slice_last(turning, half, rotary), _f32(-1.0)), _slice_last(turning, 0, half)], -1
        )
        turned = op.add(op.multiply(turning, self._cos), op.multiply(crossed, self._sin))
        return turned if rotary == spec.head_dim else op.concat([turned, _slice_last(x, rotary, spec.head_dim)], -1)


class _Cache:
    """Keys and values of all layers as state variables, reordered by beam_idx; also holds the attention mask."""

    def __init__(self, input_ids: ov.Node, attention_mask: ov.Node, beam_idx: ov.Node, spec: ModelSpec) -> None:
        self.sinks: list[ov.Node] = []
        self._beam_idx = beam_idx
        ids_shape = op.shape_of(input_ids)
        shape = [op.gather(ids_shape, _i64([0]), _i64(0)), _i64([spec.num_kv_heads]), _i64([0]), _i64([spec.head_dim])]
        self._empty = op.broadcast(_f32(0.0), op.concat(shape, 0))  # one start for all layers: fewer nodes to load
        self.mask = _causal_mask(op.gather(ids_shape, _i64(1), _i64(0)), attention_mask)

    def append(self, new: ov.Node, layer: int, kind: str, spec: ModelSpec) -> ov.Node:
        """(B, n_kv, T, head_dim) -> (B, n_kv, past + T, head_dim)."""
        name = past_name(f"{layer}.{kind}") + present_name(f"{layer}.{kind}")  # optimum-intel's naming
        past = op.read_value(
            self._empty, name, ov.Type.f32, ov.PartialShape([-1, spec.num_kv_heads, -1, spec.head_dim])
        )
        past = op.gather(past, self._beam_idx, _i64(0))
        full = op.concat([past, new], 2)
        self.sinks.append(op.assign(full, name))
        return full


def stateful_decoder(weights: Mapping[str, Weight], spec: ModelSpec) -> ov.Model:
    """The whole decoder with its KV cache in state variables."""
    input_ids = _parameter("input_ids", [-1, -1], ov.Type.i64)
    attention_mask = _parameter("attention_mask", [-1, -1], ov.Type.i64)
    position_ids = _parameter("position_ids", [-1, -1], ov.Type.i64)
    beam_idx = _parameter("beam_idx", [-1], ov.Type.i32)
    cache = _Cache(input_ids, attention_mask, beam_idx, spec)
    logits = decoder.decoder(OpenVINOBuilder(weights, position_ids, spec, cache), input_ids, spec)
    logits.output(0).set_names({"logits"})
    result = op.result(logits)
    result.set_friendly_name("logits")
    model = ov.Model([result], cache.sinks, [input_ids, attention_mask, position_ids, beam_idx], spec.architecture)
    _share_constants(model)
    _number_nodes(model)
    model.set_rt_info(spec.to_line(), list(SPEC))
    return model


def block_model(weights: Mapping[str, Weight], layer: int, spec: ModelSpec) -> ov.Model:
    """One decoder block without a cache: hidden (B, T, H) and position_ids (B, T) -> (B, T, H)."""
    hidden = _parameter(HIDDEN, [-1, -1, spec.hidden_size], ov.Type.f32)
    position_ids = _parameter("position_ids", [-1, -1], ov.Type.i64)
    out = decoder.block(OpenVINOBuilder(weights, position_ids, spec), hidden, layer, spec)
    return ov.Model([op.result(out)], [hidden, position_ids], f"block.{layer}")


def embedding_model(weights: Mapping[str, Weight]) -> ov.Model:
    """The embedding alone: input_ids (B, T) -> (B, T, H)."""
    input_ids = _parameter("input_ids", [-1, -1], ov.Type.i64)
    return ov.Model(
        [op.result(op.gather(_matrix(weights["embed.weight"], "embed.weight"), input_ids, _i64(0)))],
        [input_ids],
        "embed",
    )


def head_model(weights: Mapping[str, Weight], spec: ModelSpec) -> ov.Model:
    """Final norm and vocabulary projection: hidden (B, T, H) -> logits (B, T, vocab_size)."""
    hidden = _parameter(HIDDEN, [-1, -1, spec.hidden_size], ov.Type.f32)
    logits = decoder.head(OpenVINOBuilder(weights, op.constant(np.zeros((1, 1), np.int64)), spec), hidden, spec)
    return ov.Model([op.result(logits)], [hidden], "head")


def linear_model(weights: Mapping[str, Weight], name: str) -> ov.Model:
    """One matrix product: x (B, T, K) -> (B, T, N) with the weight of this name."""
    x = _parameter("x", [-1, -1, weights[name].shape[1]], ov.Type.f32)
    product = op.matmul(x, _matrix(weights[name], name), False, True)
    product.set_friendly_name(name.removesuffix(".weight"))
    return ov.Model([op.result(product)], [x], name)


def _share_constants(model: ov.Model) -> None:
    """Make equal small constants one node: a third fewer nodes, which every later load walks many times."""
    first: dict[tuple[str, tuple[int, ...], bytes], ov.Node] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() not in (ov.Type.i64, ov.Type.f32):
            continue
        if math.prod(node.get_output_shape(0)) > 8:
            continue
        key = (str(node.get_element_type()), tuple(node.get_output_shape(0)), node.get_data().tobytes())
        shared = first.setdefault(key, node)
        if shared is not node:
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(shared.output(0))


def _number_nodes(model: ov.Model) -> None:
    """Name unnamed nodes by their place in the graph; OpenVINO's own numbers count all nodes a process ever made."""
    for index, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(rf"{node.get_type_name()}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")


def _rotary_angles(position_ids: ov.Node, spec: ModelSpec) -> tuple[ov.Node, ov.Node]:
    """cos and sin of position * theta^(-2i / rotary_dim): (B, 1, T, rotary_dim) each, in float32."""
    positions = op.convert(op.unsqueeze(position_ids, _i64(-1)), ov.Type.f32)  # (B, T, 1)
    angles = op.multiply(positions, op.constant(spec.inverse_frequencies()[None, None]))
    angles = op.unsqueeze(op.concat([angles, angles], -1), _i64(1))
    return op.cos(angles), op.sin(angles)


def _causal_mask(num_new: ov.Node, attention_mask: ov.Node) -> ov.Node:
    """Additive mask (B, 1, T, past + T): a token sees itself and what came before, except padding."""
    total = op.gather(op.shape_of(attention_mask), _i64(1), _i64(0))
    keys = op.range(_i64(0), total, _i64(1), ov.Type.i64)
    queries = op.range(op.subtract(total, num_new), total, _i64(1), ov.Type.i64)
    causal = op.less_equal(op.unsqueeze(keys, _i64(0)), op.unsqueeze(queries, _i64(1)))  # (T, S)
    real = op.unsqueeze(op.not_equal(attention_mask, _i64(0)), _i64([1, 2]))  # (B, 1, 1, S)
    return op.select(op.logical_and(real, causal), _f32(0.0), _f32(MASKED))


def _repeat_kv(x: ov.Node, spec: ModelSpec) -> ov.Node:
    """(B, n_kv, S, head_dim) -> (B, n, S, head_dim): each KV head serves n / n_kv query heads in a row."""
    repeats = spec.num_heads // spec.num_kv_heads
    if repeats == 1:
        return x
    wide = op.broadcast(op.unsqueeze(x, _i64(2)), _i64([1, 1, repeats, 1, 1]), broadcast_spec="BIDIRECTIONAL")
    return op.reshape(wide, _i64([0, spec.num_heads, -1, spec.head_dim]), True)


def _matrix(weight: Weight, name: str) -> ov.Node:
    return _packed_constant(weight, name) if isinstance(weight, PackedTensor) else _float_constant(weight, name)


def _packed_constant(tensor: PackedTensor, name: str) -> ov.Node:
    """Integers -> (q - zero_point) * scale in float16 -> float32, the form that OpenVINO fuses into the product."""
    n, k = tensor.shape
    shape = [n, k] if tensor.groups == 1 else [n, tensor.groups, tensor.group_size]
    per_group = [*shape[:-1], 1]
    kind = getattr(ov.Type, ("i" if tensor.signed else "u") + str(tensor.bits))
    node = op.convert(_raw_constant(tensor.data, shape, kind, name), ov.Type.f16)
    if tensor.zero_point is not None:
        zero = _raw_constant(tensor.zero_point, per_group, kind, f"{name}/zero_point")
        node = op.subtract(node, op.convert(zero, ov.Type.f16))
    scale = _raw_constant(tensor.scale.reshape(-1).view(np.uint8), per_group, ov.Type.f16, f"{name}/scale")
    node = op.multiply(node, scale)
    if tensor.groups > 1:
        node = op.reshape(node, _i64([n, k]), False)
    return op.convert(node, ov.Type.f32)


def _raw_constant(data: npt.NDArray[np.uint8], shape: list[int], kind: ov.Type, name: str) -> ov.Node:
    """A constant over this memory, which has to outlive the graph: OpenVINO keeps no reference to the array."""
    assert data.flags.c_contiguous
    node = op.constant(ov.Tensor(data, ov.Shape(shape), kind), shared_memory=True)
    node.set_friendly_name(name)
    return node


def _float_constant(values: FloatArray, name: str) -> ov.Node:
    """A float constant; 16 bits are marked as a compressed float32 so that engines may keep them small."""
    kinds = {np.dtype(np.float32): ov.Type.f32, np.dtype(np.float16): ov.Type.f16, BFLOAT16: ov.Type.bf16}
    node = _raw_constant(values.reshape(-1).view(np.uint8), list(values.shape), kinds[values.dtype], name)
    if values.dtype == np.float32:
        return node
    wide = op.convert(node, ov.Type.f32)
    wide.get_rt_info()["decompression_0"] = ""
    return wide


def _as_float(weight: Weight) -> FloatArray:
    assert not isinstance(weight, PackedTensor), "norms and biases are never packed"
    return weight


def _slice_last(x: ov.Node, start: int, stop: int) -> ov.Node:
    return op.slice(x, _i64([start]), _i64([stop]), _i64([1]), _i64([3]))


def _parameter(name: str, shape: list[int], kind: ov.Type) -> ov.Node:
    node = op.parameter(ov.PartialShape(shape), kind, name=name)
    node.output(0).set_names({name})
    return node


def _i64(value: int | list[int]) -> ov.Node:
    return op.constant(np.asarray(value, np.int64))


def _f32(value: float) -> Any:
    return op.constant(np.float32(value))
