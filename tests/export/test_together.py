"""Runs side by side give what they give one after the other, and end together when one of them fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from edge.export.compress.nncf import Compressor
from edge.export.compress.precision import Precision
from edge.export.graph import together as together_module
from edge.export.graph.together import Multiply, multiply, together
from edge.export.tensors import Float32Array

RNG = np.random.default_rng(11)
FIRST, SECOND = (
    Compressor().compress("w.weight", RNG.normal(size=(96, 128)).astype(np.float32), Precision(bits, group_size=group))
    for bits, group in ((4, 32), (8, 0))
)
STATES = [RNG.normal(size=(128, tokens)).astype(np.float32) for tokens in (5, 1, 32)]


def passes(columns: Float32Array, product: Multiply) -> Float32Array:
    y = product(FIRST, columns)
    return product(SECOND, np.concatenate([y, y[:32]]))


def test_every_run_has_the_bits_that_it_has_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together_module, "CHUNK_ELEMENTS", 40 * 128)  # in pieces, the last one smaller
    found = together([partial(passes, states) for states in STATES])
    for states, result in zip(STATES, found, strict=True):
        np.testing.assert_array_equal(result, passes(states, multiply))


def test_what_one_run_raises_ends_the_others() -> None:
    def fails(product: Multiply) -> Float32Array:
        product(FIRST, STATES[0])
        raise ValueError("one of them")

    runs: list[Callable[[Multiply], Float32Array]] = [fails, partial(passes, STATES[1]), partial(passes, STATES[2])]
    with pytest.raises(ValueError, match="one of them"):
        together(runs)
