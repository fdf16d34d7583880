"""How far a stage may be off depends on how many bits its weights have."""

from __future__ import annotations

import numpy as np
import pytest

from edge.export.compress import gptq
from edge.export.compress.precision import Precision
from edge.export.proof import TOLERATED, WRONG, Sampled, error_bound, rounding_error
from edge.export.tensors import Float32Array, PackedTensor

RNG = np.random.default_rng(5)
FLOATS: Float32Array = RNG.normal(size=(64, 128)).astype(np.float32)
INPUTS = gptq.moments(RNG.normal(size=(512, 128)).astype(np.float32))


def packed(bits: int) -> PackedTensor:
    return gptq.quantize(FLOATS, INPUTS, Precision(bits, symmetric=True, group_size=32))


@pytest.mark.parametrize(("bits", "may_be_as_far_off_as_a_wrong_stage"), [(2, True), (4, False)])
def test_only_steps_of_two_bits_explain_an_error_of_the_size_of_the_output(
    bits: int, may_be_as_far_off_as_a_wrong_stage: bool
) -> None:
    weight = packed(bits)
    rounding = rounding_error(*Sampled({"w": FLOATS}).size("w"), weight)
    bound = error_bound(rounding, [weight, FLOATS])
    assert (bound > WRONG) == may_be_as_far_off_as_a_wrong_stage
    assert bound < 2 * TOLERATED, "there is a bound"
    coarse = error_bound(100.0, [weight])
    assert (coarse > WRONG) == may_be_as_far_off_as_a_wrong_stage


def test_sizes_come_with_the_first_read() -> None:
    reads: list[str] = []

    class Reads(dict[str, Float32Array]):
        def __getitem__(self, name: str) -> Float32Array:
            reads.append(name)
            return super().__getitem__(name)

    weights = Sampled(Reads(w=FLOATS))
    np.testing.assert_array_equal(weights["w"], FLOATS)
    shape, size = weights.size("w")
    assert (shape, reads) == (FLOATS.shape, ["w"])
    assert size == pytest.approx(float(np.sqrt(np.mean(FLOATS**2))))
