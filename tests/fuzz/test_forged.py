"""Manifests made wrong with a digest that fits, with both engines behind them."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from edge.runtime.bundle import MANIFEST
from edge.runtime.errors import EdgeError
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests.forging import write_manifest
from tests.fuzz.driver import is_message
from tests.fuzz.mutate import mutate

INPUTS = 300


@pytest.mark.slow
def test_a_forged_manifest_is_one_line_or_answers(tiny_bundle: Path, engine: str, tmp_path: Path) -> None:
    """Of its fields without the long lists, so that most changes meet what decides how the model is run."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    whole = json.loads((bundle / MANIFEST).read_text())
    decisive = {name: value for name, value in whole.items() if name not in ("checks", "files", "tensors", "versions")}
    outcomes: Counter[str] = Counter()
    for seed in range(INPUTS):
        raw = mutate(seed, json.dumps(decisive).encode(), "json")
        with contextlib.suppress(ValueError, RecursionError, TypeError):
            write_manifest(bundle, whole | json.loads(raw))
        said = ""
        try:
            with LLM(bundle, EngineSettings(engine)) as llm:
                llm.chat([{"role": "user", "content": "Hello"}], max_new_tokens=8).text()
        except EdgeError as error:
            said = str(error)
        assert is_message(said), seed
        outcomes["refused" if said else "answered"] += 1
    assert outcomes["answered"] > 20, outcomes
    assert outcomes["refused"] > 20, outcomes
