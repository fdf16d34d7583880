"""Products of many tokens with large matrices, in bfloat16 where the processor multiplies that twice as fast.

In: float32 arrays. Out: float32 arrays. Sums are float32; what goes in and every result are rounded to bfloat16: off by
0.3 %, at random, where the rounding that is fitted there is off by 10 (docs/findings.md). Each call is computed on one
core, as `parallel.py` wants it. Without such a processor, and for small matrices, it is numpy's product in float32.
"""

from __future__ import annotations

import functools
import queue

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset13 as ops

from edge.export.tensors import Float32Array
from edge.runtime.engines.openvino_core import make_core
from edge.runtime.machine import physical_cores

IN_CACHE = 1 << 16  # numbers that are rounded at a time
LEAST = 1 << 22  # products of a token with a matrix: smaller ones stay in float32, which takes little time there


class Rounded:
    """A matrix that stays as it is, or in bfloat16 as OpenVINO takes it."""

    def __init__(self, matrix: Float32Array, *, narrow: bool) -> None:
        self.matrix: Float32Array | None = None if narrow else matrix
        self.tensor: ov.Tensor | None = None
        if narrow:
            bits = np.empty(matrix.shape, np.int16)  # numpy has no type for it
            step = max(IN_CACHE // matrix.shape[1], 1)
            for start in range(0, len(matrix), step):
                bits[start : start + step] = _bfloat16(matrix[start : start + step])
            self.tensor, self._bits = ov.Tensor(bits, matrix.shape, ov.Type.bf16), bits  # it does not keep them alive


class RowProduct:
    """A matrix (N, K) that tokens (T, K) are multiplied with: (T, N)."""

    def __init__(self, matrix: Float32Array) -> None:
        self._right = Rounded(matrix, narrow=narrow(matrix.size))

    def __call__(self, tokens: Float32Array) -> Float32Array:
        if self._right.matrix is not None:
            found: Float32Array = tokens @ self._right.matrix.T
            return found
        return _engine(tokens_first=False).run(Rounded(tokens, narrow=True), self._right)


def narrow(size: int) -> bool:
    """Whether products with a matrix of this size are made of bfloat16."""
    return size >= LEAST and _faster()


def over_tokens(a: Float32Array, b: Rounded) -> Float32Array:
    """a^T b for a (T, M) and b (T, N)."""
    if b.matrix is not None:
        found: Float32Array = np.matmul(a.T, b.matrix)
        return found
    return _engine(tokens_first=True).run(Rounded(a, narrow=True), b)


def _bfloat16(rows: Float32Array) -> npt.NDArray[np.int16]:
    """The upper halves, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(rows).view(np.uint32)
    odd = bits >> 16
    odd &= 1
    odd += np.uint32(0x7FFF)
    odd += bits
    return odd.view(np.int16)[:, 1::2]  # of little-endian numbers


class _Engine:
    """One product as a graph, with a request for each core."""

    def __init__(self, core: ov.Core, *, tokens_first: bool) -> None:
        a, b = (ops.parameter([-1, -1], ov.Type.bf16) for _ in range(2))
        product = ops.convert(ops.matmul(a, b, transpose_a=tokens_first, transpose_b=not tokens_first), ov.Type.f32)
        cores = physical_cores() or 1
        compiled = core.compile_model(
            ov.Model([product], [a, b]),
            "CPU",
            {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": cores, "NUM_STREAMS": cores},
        )
        self._free: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        for _ in range(cores):
            self._free.put(compiled.create_infer_request())

    def run(self, a: Rounded, b: Rounded) -> Float32Array:
        request = self._free.get()
        try:
            request.infer([a.tensor, b.tensor])
            found: Float32Array = np.array(request.get_output_tensor().data)
            return found
        finally:
            self._free.put(request)


@functools.cache
def _core() -> ov.Core:
    return make_core()


@functools.cache
def _faster() -> bool:
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@functools.cache
def _engine(*, tokens_first: bool) -> _Engine:
    return _Engine(_core(), tokens_first=tokens_first)
