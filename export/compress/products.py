"""Products of many tokens with large matrices, in bfloat16 where the processor multiplies that twice as fast.

In: float32 arrays. Out: float32 arrays. Sums are float32; what goes in and every result are rounded to bfloat16: off by
0.3 %, at random, where the rounding that is fitted there is off by 10 (docs/findings.md). Each call is computed on one
core, as `parallel.py` wants it. Without such a processor, and for small matrices, it is numpy's product in float32.
"""

from __future__ import annotations

import functools
import queue
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge.export.parallel import in_parallel
from edge.export.tensors import Float32Array
from edge.runtime.machine import physical_cores

if TYPE_CHECKING:  # plans are made, and profiles read, without OpenVINO
    import openvino as ov

IN_CACHE = 1 << 16  # numbers that are rounded at a time
PANEL = 1 << 8  # columns of moments on one core at a time
NARROW_PANEL = 1 << 10
LOUD = 16  # times the median power of a token
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
            self._take(bits)

    @classmethod
    def of_bits(cls, bits: npt.NDArray[np.int16]) -> Rounded:
        """A matrix that is rounded already."""
        rounded = cls.__new__(cls)
        rounded.matrix = None
        rounded._take(bits)
        return rounded

    def _take(self, bits: npt.NDArray[np.int16]) -> None:
        import openvino as ov

        self.tensor, self._bits = ov.Tensor(bits, bits.shape, ov.Type.bf16), bits  # it does not keep them alive


class RowProduct:
    """A matrix (N, K) that tokens (T, K) are multiplied with: (T, N)."""

    def __init__(self, matrix: Float32Array) -> None:
        self._right = Rounded(matrix, narrow=narrow(matrix.size))

    def __call__(self, tokens: Float32Array) -> Float32Array:
        if self._right.matrix is not None:
            found: Float32Array = tokens @ self._right.matrix.T
            return found
        return _engine(tokens_first=False).run(Rounded(tokens, narrow=True), self._right)


class Collected:
    """Rows (R, N) that become known one after the other, and are multiplied with before all are there."""

    def __init__(self, rows: Float32Array, *, narrow: bool) -> None:
        self.rows = rows
        self._bits = np.empty(rows.shape if narrow else (0, 0), np.int16)

    def found(self, which: slice) -> None:
        """These rows are final."""
        if self._bits.size:
            self._bits[which] = _bfloat16(self.rows[which])

    def times(self, left: Rounded, which: slice) -> Float32Array:
        """left^T (M, R') times these of the rows (R', N)."""
        if left.matrix is not None:
            found: Float32Array = left.matrix.T @ self.rows[which]
            return found
        return _engine(tokens_first=True).run(left, Rounded.of_bits(self._bits[which]))


def narrow(size: int) -> bool:
    """Whether products with a matrix of this size are made of bfloat16."""
    return size >= LEAST and _faster()


def over_tokens(a: Float32Array, b: Rounded) -> Float32Array:
    """a^T b for a (T, M) and b (T, N)."""
    if b.matrix is not None:
        found: Float32Array = np.matmul(a.T, b.matrix)
        return found
    return _engine(tokens_first=True).run(Rounded(a, narrow=True), b)


def add_moments(total: Float32Array, tokens: Float32Array) -> None:
    """Add x^T x to total (K, K) for tokens x (T, K), at least on and above its diagonal.

    Tokens that are far longer than others, as a model's first, decide most of a sum, and their rounding would. They are
    few, and stay in float32.
    """
    k = len(total)
    if not narrow(k * k):
        _add_moments(total, tokens)
        return
    power = np.einsum("tk,tk->t", tokens, tokens)
    loud = power > LOUD * np.median(power)
    if loud.any():
        _add_moments(total, tokens[loud])
        tokens = tokens[~loud]
    panels = [slice(start, start + NARROW_PANEL) for start in range(0, k, NARROW_PANEL)]
    rounded = in_parallel(lambda panel: Rounded(tokens[:, panel], narrow=True), panels)
    engine = _engine(tokens_first=True)

    def multiply(pair: tuple[int, int]) -> None:
        a, b = pair
        total[panels[a], panels[b]] += engine.run(rounded[a], rounded[b])

    in_parallel(multiply, [(a, b) for a in range(len(panels)) for b in range(a, len(panels))])


def _add_moments(total: Float32Array, tokens: Float32Array) -> None:
    """The same in float32."""

    def multiply(start: int) -> None:
        stop = start + PANEL
        total[start:stop, start:] += tokens[:, start:stop].T @ tokens[:, start:]

    in_parallel(multiply, range(0, len(total), PANEL))


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
        import openvino as ov
        import openvino.opset13 as ops

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
    from edge.runtime.engines.openvino_core import make_core

    return make_core()


@functools.cache
def _faster() -> bool:
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@functools.cache
def _engine(*, tokens_first: bool) -> _Engine:
    return _Engine(_core(), tokens_first=tokens_first)
