"""Rounding to nearest as NNCF does it: the same bytes, some rows at a time and on all cores.

In: a (N, K) matrix in any float dtype, and a `Precision` of 4 or 8 bits. Out: a `PackedTensor`. Knows nothing about
NNCF: `nncf.py` compares the two before it relies on this one.

The arithmetic is that of nncf 3.4.0 (`_build_integer_quantization_model`, in models.py of its
openvino/optimized_functions): float32 throughout, a range that includes 0 where integers are asymmetric and else its
longer side with the sign that gives it the one integer more, divisions that are not turned into products, ties to even.
NNCF builds, compiles and runs a graph for every matrix, whose memory is fresh each time; here what is worked on stays
in a core's cache.
"""

from __future__ import annotations

import numpy as np

from edge.export.compress.precision import Precision
from edge.export.compress.rounding import limits
from edge.export.parallel import in_parallel
from edge.export.tensors import Bytes, Float32Array, FloatArray, PackedTensor, pack, write_float32

LEAST = 10_000  # weights: smaller matrices NNCF rounds without a graph, in other steps
IN_CACHE = 1 << 17  # weights in float32 at a time: half a megabyte
PER_CORE = 1 << 22  # weights that a core is given at a time
SMALLEST_STEP = np.finfo(np.float32).eps  # as NNCF has it, so that nothing is divided by 0


def fits(shape: tuple[int, ...], precision: Precision) -> bool:
    """Whether this module rounds matrices of this shape: not too small, and with rows that end where bytes do."""
    n, k = shape
    return n * k >= LEAST and k * precision.bits % 8 == 0


def compress(weight: FloatArray, precision: Precision) -> PackedTensor:
    """Round a (N, K) matrix to the nearest of its precision's numbers. Values that are not finite give such scales."""
    n, k = weight.shape
    group = precision.group_size or k
    data: Bytes = np.empty((n, k * precision.bits // 8), np.uint8)
    scale = np.empty((n, k // group), np.float16)
    zero = np.empty((0 if precision.symmetric else n, k // group), np.uint8)
    rows_in_cache = max(IN_CACHE // k, 1)
    rows_per_core = max(PER_CORE // k, 1)

    def round_rows(first: int) -> None:
        wide = np.empty((rows_in_cache, k), np.float32)
        with np.errstate(all="ignore"):  # what is not finite is told by who reads it
            for start in range(first, min(first + rows_per_core, n), rows_in_cache):
                some = slice(start, min(start + rows_in_cache, first + rows_per_core, n))
                part = wide[: some.stop - some.start]
                write_float32(weight[some], part)
                found, middles = _round(part, group, precision)
                scale[some] = found
                if middles is not None:
                    zero[some] = middles
                integers = part.astype(np.int8 if precision.symmetric else np.uint8).view(np.uint8)
                data[some] = integers if precision.bits == 8 else _pairs(integers)

    in_parallel(round_rows, range(0, n, rows_per_core))
    packed_zero = None if precision.symmetric else pack(zero.reshape(-1), precision.bits)
    return PackedTensor((n, k), precision.bits, precision.symmetric, group, data.reshape(-1), scale, packed_zero)


def _round(rows: Float32Array, group: int, precision: Precision) -> tuple[Float32Array, Float32Array | None]:
    """Steps and zero points (n, K / group) of rows (n, K), which become integers in place."""
    n, k = rows.shape
    low, high = limits(precision)
    starts = np.arange(0, rows.size, group)
    least, most = (f.reduceat(rows.reshape(-1), starts).reshape(n, -1) for f in (np.minimum, np.maximum))
    if precision.symmetric:
        lowest = np.abs(least)
        step = np.where(lowest >= most, lowest, -most) / np.float32(-low)
    else:
        least, most = np.minimum(least, 0), np.maximum(most, 0)
        step = (most - least) / np.float32(high)
    steps: Float32Array = np.where(np.abs(step) < SMALLEST_STEP, SMALLEST_STEP, step).astype(np.float32)
    groups = rows.reshape(n, k // group, group)
    groups /= steps[..., None]
    middle: Float32Array | None = None
    if not precision.symmetric:
        middle = np.clip(np.float32(low) - np.rint(least / steps), low, high)
        groups += middle[..., None]
    np.rint(rows, out=rows)
    np.clip(rows, low, high, out=rows)
    return steps, middle


def _pairs(integers: Bytes) -> Bytes:
    """Two integers of 4 bits (n, K) to a byte (n, K / 2), low first; higher bits are dropped."""
    both = (integers & 0xF).view("<u2")
    packed: Bytes = (both | both >> 4).astype(np.uint8)
    return packed
