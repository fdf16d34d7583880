"""The engine runs the kernels that the graph was shaped for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from edge.export.pipeline import export
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests.tiny import TINIES, Tiny, make


@pytest.mark.parametrize("tiny", TINIES[:2], ids=lambda tiny: tiny.name)
def test_every_block_is_fused(tiny: Tiny, tmp_path: Path) -> None:
    """One rotation, one paged attention, four products a block, two norms; partial rotary included."""
    make(tiny, tmp_path / "checkpoint")
    layers = export(tmp_path / "checkpoint", tmp_path / "bundle", "int8-asym").spec.num_layers
    request = LLM(tmp_path / "bundle").engine._request  # type: ignore[attr-defined]
    nodes = request.get_compiled_model().get_runtime_model().get_ops()
    kinds = Counter(node.get_rt_info()["layerType"].astype(str) for node in nodes)
    assert kinds["RoPE"] == kinds["PagedAttention"] == layers
    assert kinds["RMS"] == 2 * layers + 1
    assert kinds["FullyConnected"] == 4 * layers + 1
    assert not kinds["Transpose"]


def test_threads_are_taken(tiny_bundle: Path) -> None:
    request = LLM(tiny_bundle, EngineSettings(threads=1)).engine._request  # type: ignore[attr-defined]
    assert request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1
