"""Where a bundle's greedy text diverges from the float model's: against text that the float model wrote itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.export.pipeline import export
from edge.export.plan import make_plan
from edge.export.settings import ExportSettings
from edge.profiles.divergence import Divergence, first_divergence, write_greedily
from edge.runtime.errors import CalibrationError, ProfileError
from edge.runtime.llm import LLM
from tests import tiny
from tests.conftest import EXACT

PROMPTS = np.random.default_rng(5).integers(0, 256, (4, 8))
NEW = 12


def test_texts_leave_the_float_models_where_they_first_differ(
    tiny_checkpoint: Path, int4_bundle: Path, tmp_path: Path
) -> None:
    weights = make_plan(tiny_checkpoint, ExportSettings("fp32")).weights
    export(tiny_checkpoint, tmp_path / "float", "fp32")
    llm = LLM(tmp_path / "float", EXACT["openvino"])
    writable = llm.tokenizer.num_tokens
    assert writable < tiny.VOCAB, "and what is not writable must not count"
    own = write_greedily(llm, PROMPTS, NEW)
    assert own.shape == (4, 8 + NEW)
    np.testing.assert_array_equal(own[:, :8], PROMPTS)
    same = first_divergence(weights, own, 8, writable)
    assert same == Divergence((NEW,) * 4, NEW, NEW, NEW, 1)
    assert same.stderr == 0
    changed = own.copy()
    for n in range(4):
        changed[n, 8 + n] = (own[n, 8 + n] + 1) % writable
    parted = first_divergence(weights, changed, 8, writable)
    assert parted.lengths == (0, 1, 2, 3)
    assert parted.stderr == pytest.approx(np.sqrt(5 / 3 / 4))

    texts = write_greedily(LLM(int4_bundle, EXACT["openvino"]), PROMPTS, NEW)
    found = first_divergence(weights, texts, 8, writable)
    for text, wanted, length in zip(texts[:, 8:], own[:, 8:], found.lengths, strict=True):
        np.testing.assert_array_equal(text[:length], wanted[:length])
        assert length == NEW or text[length] != wanted[length]
    assert found.mean == np.mean(found.lengths) < NEW
    assert found.never == np.mean(np.array(found.lengths) == NEW)
    assert Divergence.from_json(found.to_json()) == found


def test_what_is_no_record_and_what_the_model_cannot_read(tiny_checkpoint: Path) -> None:
    for data in (None, {}, {"lengths": [1]}, {"lengths": ["x"], "new_tokens": 1, "mean": 1, "median": 1, "never": 0}):
        with pytest.raises(ProfileError, match="a record of a divergence"):
            Divergence.from_json(data)
    weights = make_plan(tiny_checkpoint, ExportSettings("fp32")).weights
    with pytest.raises(CalibrationError, match="the model has"):
        first_divergence(weights, np.full((1, 9), tiny.VOCAB), 4, 259)
