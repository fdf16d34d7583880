"""What rounding a matrix does to a model: errors of its output, and models in which it is replaced.

In: matrices, inputs, a precision. Out: powers of errors, hidden states of models that branch off, KLD. Knows nothing
about which matrices are measured, or why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edge.export.compress import gptq
from edge.export.compress.moments import Moments
from edge.export.compress.precision import Precision
from edge.export.compress.rounding import nearest
from edge.export.graph.numpy_parallel import ROWS, ParallelBuilder
from edge.export.parallel import in_parallel
from edge.export.tensors import Float32Array, FloatArray, Weight, rows_of
from edge.runtime.differences import kl_divergence
from edge.runtime.spec import ModelSpec

CARRIED = 4  # windows that errors and KLD are measured on
PIECE = 64  # rows of logits in float64


class Branching(ParallelBuilder):
    """The float model, from which models branch off at matrices that `look` gives a replacement for.

    The first `n` windows are the float model's, and CARRIED more follow for every branch.
    """

    def __init__(
        self,
        weights: Mapping[str, FloatArray],
        spec: ModelSpec,
        n: int,
        look: Callable[[str, Float32Array], Weight | None],
    ) -> None:
        super().__init__(weights, spec, lambda _name, _inputs: self._current)
        self._n, self._look = n, look
        self._current: Weight = np.zeros(0, np.float32)

    def linear(self, x: Float32Array, name: str) -> Float32Array:
        self._current = self._weights[f"{name}.weight"]
        y = super().linear(x, name)
        swap = self._look(f"{name}.weight", x[: self._n].reshape(-1, x.shape[-1]))
        if swap is None:
            return y
        self._current = swap
        return np.concatenate([y, super().linear(x[:CARRIED], name)])

    def add(self, a: Float32Array, b: Float32Array, name: str) -> Float32Array:
        branched = (len(b) - len(a)) // CARRIED  # since `a` was taken
        return super().add(np.concatenate([a, *[a[:CARRIED]] * branched]), b, name)


def round_as_exported(rows: Float32Array, inputs: Moments, precision: Precision) -> Weight:
    """The same as the export does it: few bits fitted to inputs with these moments, 8 to nearest."""
    return gptq.quantize(rows, inputs, precision) if precision.is_narrow else nearest(rows, precision)


def power_of(inputs: Float32Array, weight: Weight, other: Weight | None = None) -> float:
    """|X W^T|^2 of inputs (T, K) and a matrix (N, K), or of its difference from another one."""

    def of_rows(start: int) -> float:
        rows = rows_of(weight, start, start + ROWS)
        if other is not None:
            rows = rows - rows_of(other, start, start + ROWS)
        return float(np.square(inputs @ rows.T).sum(dtype=np.float64))

    return sum(in_parallel(of_rows, range(0, weight.shape[0], ROWS)))


def kld_sum(expected: Float32Array, found: Float32Array, start: int) -> float:
    """Sum over PIECE rows of KL(softmax(expected) || softmax(found))."""
    rows = slice(start, start + PIECE)
    return kl_divergence(expected[rows], found[rows]) * len(expected[rows])
