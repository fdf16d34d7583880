"""LoRA correction: what rounding took from a matrix's product is given back by two narrow matrices.

In: a float matrix (N, K), its rounded form, and the moments of the inputs that it will meet. Out: the rounded one with
a (R, K) and b (N, R), whose product b a gives back as much of the output as rank R can. Knows nothing about how
matrices are rounded.

With F^T F = the moments and E what the rounded matrix lacks, the output lacks |E F^T|^2 of power; so b a is the best
approximation of E F^T of rank R, seen through F: its first singular vectors. They come from subspace iteration, since
decomposing all of E F^T would take as long as rounding did. (NNCF's LoRA correction searches for a and b in turn,
starting from mean inputs as LQER, arXiv 2402.02446, does.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edge.export.compress.moments import Moments
from edge.export.parallel import in_parallel
from edge.export.tensors import Float32Array, LowRank, PackedTensor, rows_of

MORE = 8  # directions followed besides those wanted, so that the last of these are accurate too
TURNS = 4  # of the iteration
ROWS_PER_CORE = 1 << 9  # of the matrix at a time
SEED = 20_240_204


def correct(
    weight: Float32Array,
    packed: PackedTensor,
    inputs: Moments,
    rank: int,
    pack: Callable[[str, Float32Array], PackedTensor],
) -> PackedTensor:
    """The packed matrix with a product of at most this rank, for inputs with these moments.

    pack: rounds the two narrow matrices, "lora_a" and "lora_b". b is fitted to the rounded a.
    """
    from scipy.linalg.blas import strmm, strsm

    lack = _Lack(weight, packed, inputs)
    n, k = weight.shape
    width = min(rank + MORE, n, k)
    directions = np.linalg.qr(np.random.default_rng(SEED).normal(size=(k, width)).astype(np.float32))[0]
    for _ in range(TURNS):
        outputs = np.linalg.qr(lack.times(directions))[0]  # (N, width)
        directions = np.linalg.qr(lack.transposed_times(outputs))[0]  # (K, width)
    turned = np.linalg.svd(lack.times(directions), full_matrices=False)[2]
    best = directions @ turned[:rank].T  # (K, R), right singular vectors of E F^T
    a = np.empty((best.shape[1], k), np.float32)
    a[:, inputs.order] = strsm(1.0, inputs.factor.T, best, lower=1, trans_a=1).T
    narrow = pack("lora_a", a)
    a = rows_of(narrow, 0, len(a))
    seen = strmm(1.0, inputs.factor.T, a[:, inputs.order].T, lower=1, trans_a=1)  # (K, R), F a^T
    b = np.linalg.lstsq(seen.T @ seen, lack.times(seen).T, rcond=None)[0].T
    return replace(packed, low_rank=LowRank(narrow, pack("lora_b", np.ascontiguousarray(b))))


@dataclass(frozen=True)
class _Lack:
    """E F^T (N, K), some rows at a time: E is what the packed matrix lacks.

    LAPACK counts columns first: to it, F^T is a lower triangle, and what is above it is not read.
    """

    weight: Float32Array
    packed: PackedTensor
    inputs: Moments

    def rows(self, start: int) -> Float32Array:
        stop = start + ROWS_PER_CORE
        return self.weight[start:stop] - rows_of(self.packed, start, stop)

    def times(self, directions: Float32Array) -> Float32Array:
        """(K, r) -> (N, r)."""
        from scipy.linalg.blas import strmm

        seen = np.empty_like(directions, order="C")
        seen[self.inputs.order] = strmm(1.0, self.inputs.factor.T, directions, lower=1)
        starts = range(0, len(self.weight), ROWS_PER_CORE)
        return np.concatenate(in_parallel(lambda start: self.rows(start) @ seen, starts))

    def transposed_times(self, outputs: Float32Array) -> Float32Array:
        """(N, r) -> (K, r)."""
        from scipy.linalg.blas import strmm

        total = np.zeros((self.weight.shape[1], outputs.shape[1]), np.float32)
        for found in in_parallel(
            lambda start: self.rows(start).T @ outputs[start : start + ROWS_PER_CORE],
            range(0, len(self.weight), ROWS_PER_CORE),
        ):
            total += found
        product: Float32Array = strmm(1.0, self.inputs.factor.T, total[self.inputs.order], lower=1, trans_a=1)
        return product
