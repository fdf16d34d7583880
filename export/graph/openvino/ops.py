"""Small parts that OpenVINO graphs are made of: constants, slices, masks, rotary angles.

In: numbers, nodes, weights. Out: nodes. Knows nothing about decoders or files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset13 as op

from edge.export.tensors import BFLOAT16, FloatArray, PackedTensor, Weight
from edge.runtime.spec import ModelSpec

# Masked attention scores. Finite, so that a row that is all padding gives numbers and not NaN; fits in float16.
MASKED = -65504.0


def rotary_angles(position_ids: ov.Node, spec: ModelSpec) -> tuple[ov.Node, ov.Node]:
    """cos and sin of position * theta^(-2i / rotary_dim): (B, 1, T, rotary_dim) each, in float32."""
    positions = op.convert(op.unsqueeze(position_ids, i64(-1)), ov.Type.f32)  # (B, T, 1)
    angles = op.multiply(positions, op.constant(spec.inverse_frequencies()[None, None]))
    angles = op.unsqueeze(op.concat([angles, angles], -1), i64(1))
    return op.cos(angles), op.sin(angles)


def causal_mask(num_new: ov.Node, attention_mask: ov.Node) -> ov.Node:
    """Additive mask (B, 1, T, past + T): a token sees itself and what came before, except padding."""
    total = op.gather(op.shape_of(attention_mask), i64(1), i64(0))
    keys = op.range(i64(0), total, i64(1), ov.Type.i64)
    queries = op.range(op.subtract(total, num_new), total, i64(1), ov.Type.i64)
    causal = op.less_equal(op.unsqueeze(keys, i64(0)), op.unsqueeze(queries, i64(1)))  # (T, S)
    real = op.unsqueeze(op.not_equal(attention_mask, i64(0)), i64([1, 2]))  # (B, 1, 1, S)
    return op.select(op.logical_and(real, causal), f32(0.0), f32(MASKED))


def scaled_rows(rows: ov.Node, spec: ModelSpec) -> ov.Node:
    """Rows of the embedding as the residual stream has them."""
    return op.multiply(rows, f32(2.0**-spec.residual_exponent)) if spec.residual_exponent else rows


def repeat_kv(x: ov.Node, spec: ModelSpec) -> ov.Node:
    """(B, n_kv, S, head_dim) -> (B, n, S, head_dim): each KV head serves n / n_kv query heads in a row."""
    repeats = spec.num_heads // spec.num_kv_heads
    if repeats == 1:
        return x
    wide = op.broadcast(op.unsqueeze(x, i64(2)), i64([1, 1, repeats, 1, 1]), broadcast_spec="BIDIRECTIONAL")
    return op.reshape(wide, i64([0, spec.num_heads, -1, spec.head_dim]), True)


def matrix(weight: Weight, name: str) -> ov.Node:
    return packed_constant(weight, name) if isinstance(weight, PackedTensor) else float_constant(weight, name)


def packed_constant(tensor: PackedTensor, name: str) -> ov.Node:
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
        node = op.reshape(node, i64([n, k]), False)
    return op.convert(node, ov.Type.f32)


def _raw_constant(data: npt.NDArray[np.uint8], shape: list[int], kind: ov.Type, name: str) -> ov.Node:
    """A constant over this memory, which has to outlive the graph: OpenVINO keeps no reference to the array."""
    assert data.flags.c_contiguous
    node = op.constant(ov.Tensor(data, ov.Shape(shape), kind), shared_memory=True)
    node.set_friendly_name(name)
    return node


def float_constant(values: FloatArray, name: str) -> ov.Node:
    """A float constant; 16 bits are marked as a compressed float32 so that engines may keep them small."""
    kinds = {"float32": ov.Type.f32, "float16": ov.Type.f16, BFLOAT16: ov.Type.bf16}
    node = _raw_constant(values.reshape(-1).view(np.uint8), list(values.shape), kinds[values.dtype.name], name)
    if values.dtype == np.float32:
        return node
    wide = op.convert(node, ov.Type.f32)
    wide.get_rt_info()["decompression_0"] = ""
    return wide


def _as_float(weight: Weight) -> FloatArray:
    assert not isinstance(weight, PackedTensor), "norms and biases are never packed"
    return weight


def slice_last(x: ov.Node, start: int, stop: int) -> ov.Node:
    return op.slice(x, i64([start]), i64([stop]), i64([1]), i64([3]))


def parameter(name: str, shape: list[int], kind: ov.Type) -> ov.Node:
    node = op.parameter(ov.PartialShape(shape), kind, name=name)
    node.output(0).set_names({name})
    return node


def i64(value: int | list[int]) -> ov.Node:
    return op.constant(np.asarray(value, np.int64))


def f32(value: float) -> Any:  # Any: a node of openvino, which has no types
    return op.constant(np.float32(value))
