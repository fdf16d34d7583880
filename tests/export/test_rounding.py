"""Rounding to nearest is what nncf does, and errs by half a step at most."""

from __future__ import annotations

import numpy as np
import pytest

from edge.export.compress.nncf import Compressor
from edge.export.compress.precision import Precision
from edge.export.compress.rounding import limits, middles, nearest, ranges, steps
from tests.oracle import dequantize

PRECISIONS = ["int4-asym-g32", "int4-sym-g32", "int4-asym-channel", "int4-sym-channel", "int8-asym", "int8-sym"]


@pytest.mark.parametrize("name", PRECISIONS)
def test_it_rounds_as_nncf_does(name: str) -> None:
    """But for scales in float16, which turn a few integers and change the size of the error by little."""
    rows, precision = np.random.default_rng(8).normal(size=(40, 96)).astype(np.float32), Precision.parse(name)
    rows[3, :32], rows[4], rows[5] = 0, np.abs(rows[4]), -np.abs(rows[5])
    theirs = dequantize(Compressor().compress("layers.1.mlp.down.weight", rows, precision)) - rows
    ours = nearest(rows, precision) - rows
    assert np.linalg.norm(ours - theirs) < 0.1 * np.linalg.norm(theirs)
    assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(theirs), rel=0.01)


@pytest.mark.parametrize("name", [*PRECISIONS, "int2-asym-g32", "int2-sym-g32"])
def test_no_value_is_off_by_more_than_its_step_explains(name: str) -> None:
    """Half a step; a whole one at the end of the range that has one integer less."""
    rows, precision = np.random.default_rng(9).normal(size=(40, 96)).astype(np.float32), Precision.parse(name)
    rows[7] = 0
    groups = rows.reshape(40, -1, precision.group_size or 96)
    least, most = ranges(groups)
    step = steps(least, most, precision)
    lost = np.abs(nearest(rows, precision) - rows).reshape(groups.shape)
    assert (lost <= (1.0001 if precision.symmetric else 0.5001) * np.abs(step)).all()
    assert not nearest(rows, precision)[7].any()
    zero, (low, high) = middles(least, np.where(step == 0, 1, step), precision), limits(precision)
    assert ((zero >= low) & (zero <= high) & (zero == np.rint(zero))).all()
    assert high - low == 2**precision.bits - 1
