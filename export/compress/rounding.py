"""Rounding to nearest: the integers that a precision has, steps and zero points from a range, and what rounding gives.

In: floats in groups along their last axis, and a `Precision` of 2, 4 or 8 bits. Out: steps and zero points of the
groups, and the floats that the nearest integers stand for. Knows nothing about how integers are stored, or about
float16.

A group's range always includes 0, which every precision can represent. The sign of a symmetric step is free: the longer
side of the range gets the one integer more, as nncf gives it (its integer quantization, 3.4.0).
"""

from __future__ import annotations

import numpy as np

from edge.export.compress.precision import Precision
from edge.export.tensors import Float32Array

WHOLE = np.float32(1)  # of a range


def nearest(rows: Float32Array, precision: Precision) -> Float32Array:
    """Rows (N, K) of a matrix rounded to the nearest of their precision's numbers; steps come from whole ranges."""
    groups = rows.reshape(len(rows), -1, precision.group_size or rows.shape[1])
    least, most = ranges(groups)
    step = steps(least, most, precision)
    step[step == 0] = 1  # a group of zeros
    return restored(groups, step, middles(least, step, precision), precision).reshape(rows.shape)


def limits(precision: Precision) -> tuple[int, int]:
    """The smallest and the largest integer of a precision."""
    half = 1 << (precision.bits - 1)
    return (-half, half - 1) if precision.symmetric else (0, 2 * half - 1)


def ranges(groups: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Least and largest value of groups (..., G), with 0 between them: (..., 1) each."""
    return (
        np.minimum(groups.min(axis=-1, keepdims=True), 0),
        np.maximum(groups.max(axis=-1, keepdims=True), 0),
    )


def steps(least: Float32Array, most: Float32Array, precision: Precision, clip: np.float32 = WHOLE) -> Float32Array:
    """The step for each range, of which the share `clip` is covered; 0 for a group of zeros."""
    low, high = limits(precision)
    if precision.symmetric:
        longer = np.where(-least >= most, -least, -most)
        return clip * longer / np.float32(-low)
    return clip * (most - least) / np.float32(high - low)


def middles(least: Float32Array, step: Float32Array, precision: Precision, clip: np.float32 = WHOLE) -> Float32Array:
    """The zero point for each range: the integer that stands for 0."""
    if precision.symmetric:
        return np.zeros_like(step)
    low, high = limits(precision)
    middle: Float32Array = np.clip(np.rint(-clip * least / step), low, high)
    return middle


def restored(groups: Float32Array, step: Float32Array, middle: Float32Array, precision: Precision) -> Float32Array:
    """The floats that the nearest integers stand for, of the shape of groups (..., G)."""
    low, high = limits(precision)
    found: Float32Array = groups / step
    np.rint(found, out=found)
    found += middle
    np.clip(found, low, high, out=found)
    found -= middle
    found *= step
    return found
