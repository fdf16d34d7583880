"""Scales and zero points as onnxruntime's operators for packed matrices take them.

In: a `GraphWriter` and packed matrices by name. Out: names of values in that graph: one for each row and block. Scales
stay float16 in the file and are widened, and repeated where a group is larger than a block, when a session is made.
Knows nothing about what the matrices are for.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edge.export.graph.onnx.writer import Array, GraphWriter
from edge.export.tensors import PackedTensor, pack, unpack


def widened(w: GraphWriter, name: str, values: Array) -> str:
    """A constant in float32; 16 bits stay 16 in the file and are widened when a session is made."""
    constant, wide = w.constant(name, values), f"{name}/f32"
    if values.dtype == np.float32:
        return constant
    return wide if w.has(wide) else w.op("Cast", constant, name=wide, to=TensorProto.FLOAT)


def scale_of(w: GraphWriter, name: str, weight: PackedTensor, block: int) -> str:
    """(N, K / block) float32."""
    return _per_block(w, widened(w, f"{name}/scale", weight.scale), f"{name}/scale/{block}", weight, block)


def zero_point_of(w: GraphWriter, name: str, weight: PackedTensor, block: int) -> str:
    """(N, K / block) zero points, rows in whole bytes; "" where the middle of the range is meant."""
    if weight.zero_point is None:
        return ""
    n, constant, blocks = weight.shape[0], f"{name}/zero_point", f"{name}/zero_point/{block}"
    if weight.bits == 8:
        zeros = w.constant(constant, weight.zero_point.reshape(n, -1))
        return _per_block(w, zeros, blocks, weight, block)
    rows_end_with_bytes = weight.groups * weight.bits % 8 == 0
    if block == weight.group_size and rows_end_with_bytes:  # it is as stored
        return w.constant(constant, weight.zero_point.reshape(n, -1))
    values = unpack(weight.zero_point, n * weight.groups, weight.bits, signed=False).reshape(n, -1)
    return w.constant(blocks, pack(np.repeat(values, weight.group_size // block, axis=1), weight.bits))


def _per_block(w: GraphWriter, values: str, name: str, weight: PackedTensor, block: int) -> str:
    """(N, groups) -> (N, K / block), each value for all blocks of its group."""
    n, repeats = weight.shape[0], weight.group_size // block
    if repeats == 1:
        return values
    if w.has(name):  # of a matrix that is used more than once
        return name
    if weight.groups == 1:
        return w.op("Expand", values, w.ints(n, repeats), name=name)
    wide = w.op("Unsqueeze", values, w.ints(2))
    wide = w.op("Expand", wide, w.ints(n, weight.groups, repeats))
    return w.op("Reshape", wide, w.ints(n, -1), name=name)
