"""A real path with float16 in it: NPUW, the NPU plugin's pipeline, on the CPU. Its parts pass float16 to each other.

Nothing here runs on an NPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.export.pipeline import export
from edge.runtime.arrays import Logits
from edge.runtime.differences import distance
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests import tiny
from tests.conftest import EXACT
from tests.export.float16.sabotage import residual, sabotaged
from tests.runtime.npu_bundles import GLM

pytestmark = pytest.mark.slow

RECIPE = "int4-sym-g128"
LENGTHS: dict[str, Any] = {"max_prompt_tokens": 256, "max_response_tokens": 64, "prefill_chunk_tokens": 32}
NPUW = EngineSettings("openvino_npu", inference_precision="f32", self_test="off", **LENGTHS)
PROMPT = np.random.default_rng(1).integers(0, 250, 77)


def last_row(bundle: Path, settings: EngineSettings) -> Logits:
    """Logits after the prompt."""
    with LLM(bundle, settings) as llm:
        sequence = CacheSequence(llm.engine.pool)
        for begin in range(0, len(PROMPT), 32):
            part = PROMPT[begin : begin + 32]
            logits = llm.engine.forward(part, sequence, np.array([part.size - 1], np.int64))
        row: Logits = logits[0].copy()
        sequence.free()
    return row


def test_a_residual_stream_beyond_float16(tmp_path: Path, text: Path) -> None:
    """As it is, no number comes out; folded at export, what the CPU plugin gives in float32."""
    tiny.make(GLM, tmp_path / "plain")
    path = tmp_path / "plain" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 2.0**-30}))
    folder = sabotaged(tmp_path / "plain", tmp_path / "sabotaged", residual)
    made = {name: tmp_path / f"{name}.bundle" for name in ("plain", "as it is", "folded")}
    export(tmp_path / "plain", made["plain"], RECIPE, format="openvino")
    export(folder, made["as it is"], RECIPE, format="openvino")
    manifest = export(folder, made["folded"], RECIPE, device="NPU", format="openvino", calibration=text)
    assert manifest.float16 is not None
    assert manifest.float16.residual > 0
    expected = last_row(made["plain"], EXACT["openvino"])
    found = {name: last_row(bundle, NPUW) for name, bundle in made.items()}
    assert not np.isfinite(found["as it is"]).all()
    assert distance(found["plain"], expected) < 1e-2
    assert distance(found["folded"], expected) < 1e-2
    for name in ("as it is", "folded"):
        assert distance(last_row(made[name], EXACT["openvino"]), expected) < 1e-5, "the same function"
