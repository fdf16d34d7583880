"""Figures that follow from a model's shape."""

from __future__ import annotations

import numpy as np

from edge.runtime.spec import ModelSpec


def test_inverse_frequencies_are_the_powers_of_theta() -> None:
    """Rounded once, to float32."""
    spec = ModelSpec("glm", 2, 32, 64, 2, 1, 128, 64, 5e6, 1e-5, 256, 64, False, False, False)
    found = spec.inverse_frequencies()
    assert found.dtype == np.float32
    exact = np.array([1 / 5e6 ** (2 * i / 64) for i in range(32)])
    np.testing.assert_allclose(found, exact, rtol=2**-24)
