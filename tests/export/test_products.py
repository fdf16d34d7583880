"""Products in bfloat16 are those of the rounded numbers; small ones stay in float32, to the bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from edge.export.compress import products
from edge.export.compress.products import Rounded, RowProduct, add_moments, narrow, over_tokens

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


@pytest.mark.parametrize("loud", [False, True])
def test_moments_of_large_matrices_are_off_by_rounding_alone(monkeypatch: pytest.MonkeyPatch, loud: bool) -> None:
    """Also beside a token that is a thousand times as long as the others, whose rounding would be all there is."""
    monkeypatch.setattr(products, "LEAST", 0)
    monkeypatch.setattr(products, "NARROW_PANEL", 80)  # 192 channels have a last panel that is not whole
    tokens = TOKENS.copy()
    tokens[7] *= 1000.0 if loud else 1.0
    found = np.zeros((192, 192), np.float32)
    add_moments(found, tokens)
    add_moments(found, TOKENS[:20])
    quiet = np.concatenate([TOKENS[:7], TOKENS[8:]] if loud else [TOKENS])
    expected = tokens.T.astype(np.float64) @ tokens + TOKENS[:20].T @ TOKENS[:20]
    off = np.triu(found - expected)
    alone = np.triu(quiet.T @ quiet)
    slack = 2.0**-22 * np.linalg.norm(expected)  # of float32
    assert np.linalg.norm(off) < FAR * np.linalg.norm(alone) + slack


def test_moments_of_small_matrices_are_those_of_float32() -> None:
    found = np.zeros((192, 192), np.float32)
    add_moments(found, TOKENS)
    np.testing.assert_allclose(np.triu(found), np.triu(TOKENS.T @ TOKENS), rtol=1e-5, atol=1e-5)


def test_rounding_is_that_of_bfloat16() -> None:
    values = np.concatenate([MATRIX, MATRIX.astype(ml_dtypes.bfloat16).astype(np.float32) + np.float32(2.0**-9)])
    np.testing.assert_array_equal(
        products._bfloat16(values).view(np.uint16), values.astype(ml_dtypes.bfloat16).view(np.uint16)
    )
