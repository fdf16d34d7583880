"""What several tests of exports calibrate with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Little text, which is read in no time."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    words = np.random.default_rng(0).choice(["edge", "of", "the", "wood", "lies", "a", "lake", "42"], 3000)
    path.write_text(" ".join(words.tolist()))
    return path
