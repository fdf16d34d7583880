"""What packed weights stand for, by their definition; the product has faster ways to the same numbers."""

from __future__ import annotations

import numpy as np

from edge.export.tensors import Float32Array, PackedTensor, unpack


def dequantize(tensor: PackedTensor) -> Float32Array:
    """The (N, K) float32 matrix that a packed tensor stands for, written to be read."""
    n, k = tensor.shape
    q = unpack(tensor.data, n * k, tensor.bits, signed=tensor.signed).reshape(n, tensor.groups, -1)
    values = q.astype(np.float32)
    if tensor.zero_point is not None:
        zero = unpack(tensor.zero_point, n * tensor.groups, tensor.bits, signed=False)
        values -= zero.reshape(n, tensor.groups, 1).astype(np.float32)
    else:
        values -= tensor.middle
    matrix: Float32Array = (values * tensor.scale.astype(np.float32)[:, :, None]).reshape(n, k)
    if tensor.low_rank is not None:
        matrix += dequantize(tensor.low_rank.b) @ dequantize(tensor.low_rank.a)
    return matrix
