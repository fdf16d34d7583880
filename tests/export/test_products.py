"""Products in bfloat16 are those of the rounded numbers; small ones stay in float32, to the bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from edge.export.compress import products
from edge.export.compress.products import Rounded, RowProduct, narrow, over_tokens

RNG = np.random.default_rng(3)
MATRIX, TOKENS = (RNG.normal(size=(n, 192)).astype(np.float32) for n in (96, 40))
# Both sides are rounded to 8 bits, and the result: each is off by 2^-9 at most, relative to itself.
FAR = 3 * 2.0**-9


def test_small_matrices_stay_in_float32() -> None:
    assert not narrow(MATRIX.size)
    np.testing.assert_array_equal(RowProduct(MATRIX)(TOKENS), TOKENS @ MATRIX.T)
    right = Rounded(TOKENS, narrow=narrow(TOKENS.size))
    np.testing.assert_array_equal(over_tokens(TOKENS[:, 3:9], right), TOKENS[:, 3:9].T @ TOKENS)


def test_large_ones_are_off_by_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor without bfloat16 they are not off at all."""
    monkeypatch.setattr(products, "LEAST", 0)
    expected, product = TOKENS @ MATRIX.T, RowProduct(MATRIX)
    for tokens in (TOKENS, TOKENS[:7]):
        assert np.linalg.norm(product(tokens) - expected[: len(tokens)]) < FAR * np.linalg.norm(expected)
    expected = TOKENS[:, 3:9].T @ TOKENS
    found = over_tokens(TOKENS[:, 3:9], Rounded(TOKENS, narrow=narrow(TOKENS.size)))
    assert np.linalg.norm(found - expected) < FAR * np.linalg.norm(expected)


def test_rounding_is_that_of_bfloat16() -> None:
    values = np.concatenate([MATRIX, MATRIX.astype(ml_dtypes.bfloat16).astype(np.float32) + np.float32(2.0**-9)])
    np.testing.assert_array_equal(
        products._bfloat16(values).view(np.uint16), values.astype(ml_dtypes.bfloat16).view(np.uint16)
    )
