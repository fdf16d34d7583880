"""The engine runs the kernels that the graph was shaped for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.export.pipeline import export
from edge.runtime.bundle import open_bundle
from edge.runtime.engines import openvino_properties
from edge.runtime.engines.openvino_core import make_core
from edge.runtime.engines.openvino_properties import properties
from edge.runtime.errors import SettingsError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.settings import CachePrecision, EngineSettings
from tests.tiny import TINIES, Tiny, make


@pytest.mark.parametrize("tiny", [*TINIES[:2], TINIES[-1]], ids=lambda tiny: tiny.name)
def test_every_block_is_fused(tiny: Tiny, tmp_path: Path) -> None:
    """One rotation, one paged attention, four products a block, two norms, or four; partial rotary included."""
    make(tiny, tmp_path / "checkpoint")
    spec = export(tmp_path / "checkpoint", tmp_path / "bundle", "int8-asym").spec
    layers = spec.num_layers
    request = LLM(tmp_path / "bundle").engine._request  # type: ignore[attr-defined]
    nodes = request.get_compiled_model().get_runtime_model().get_ops()
    kinds = Counter(node.get_rt_info()["layerType"].astype(str) for node in nodes)
    assert kinds["RoPE"] == kinds["PagedAttention"] == layers
    assert kinds["RMS"] == (4 if spec.qk_norms else 2) * layers + 1
    assert kinds["FullyConnected"] == 4 * layers + 1
    assert not kinds["Transpose"]


def test_threads_are_taken(tiny_bundle: Path) -> None:
    request = LLM(tiny_bundle, EngineSettings(threads=1)).engine._request  # type: ignore[attr-defined]
    assert request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1


def test_wide_products_are_cut_into_pieces(tiny_bundle: Path) -> None:
    """Of narrow ones, the pieces cost more than waiting does."""
    manifest, core = open_bundle(tiny_bundle).manifest, make_core()

    def told(width: int) -> dict[str, Any]:
        spec = replace(manifest.spec, hidden_size=width)
        return properties(core, EngineSettings("openvino"), "CPU", spec, 4, 1 << 30, 256)

    assert told(4096)["TBB_PARTITIONER"] == "AUTO"
    core.set_property("CPU", told(4096))  # OpenVINO takes it
    assert "TBB_PARTITIONER" not in told(576)


def test_pieces_have_the_same_bits(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def logits(width: int) -> list[npt.NDArray[np.float32]]:
        monkeypatch.setattr(openvino_properties, "_WIDE", width)
        llm = LLM(tiny_bundle, EngineSettings("openvino", max_context=128, self_test="off"))
        engine, ids = llm.engine, np.arange(64) % 50
        sequence = CacheSequence(engine.pool)
        steps = ((ids[:60], np.arange(60)), (ids[60:], np.arange(4)))
        return [engine.forward(new, sequence, rows).copy() for new, rows in steps]

    for whole, cut in zip(logits(1 << 20), logits(1), strict=True):
        assert np.array_equal(whole, cut)


class _Core:
    """A processor that computes in one precision unless it is told another."""

    def __init__(self, precision: str) -> None:
        self._precision = precision

    def get_property(self, device: str, name: str) -> _Core:
        assert (device, name) == ("CPU", "INFERENCE_PRECISION_HINT")
        return self

    def get_type_name(self) -> str:
        return self._precision


def chosen(core: str, bundle: Path, **options: Any) -> tuple[str | None, str | None]:
    """Inference precision, where one is set, and that of the cache."""
    manifest = open_bundle(bundle).manifest
    settings = EngineSettings("openvino", **options)
    found = properties(_Core(core), settings, "CPU", manifest.spec, manifest.fewest_bits, 1 << 30, 256)
    return found.get("INFERENCE_PRECISION_HINT"), found.get("KV_CACHE_PRECISION")


def test_cache_and_queries_have_precisions_that_go_together(int4_bundle: Path, tiny_bundle: Path) -> None:
    """The kernel for bf16 queries takes no f32 keys, and the other way about."""
    assert chosen("bf16", int4_bundle) == (None, "bf16")
    assert chosen("bf16", int4_bundle, kv_precision="f32") == ("f32", "f32")
    assert chosen("f32", int4_bundle, kv_precision="f32") == ("f32", "f32")
    for bundle, core, options in (
        (tiny_bundle, "bf16", {}),  # 8 bits are computed in f32
        (int4_bundle, "f32", {}),
        (int4_bundle, "bf16", {"inference_precision": "f32"}),
    ):
        with pytest.raises(SettingsError, match=r"kv_precision is bf16, expected f16, u8 or u4 where .* is f32"):
            chosen(core, bundle, kv_precision="bf16", **options)
    with pytest.raises(SettingsError, match=r"kv_precision is f32, expected f16, u8 or u4 where .* is bf16"):
        chosen("f32", int4_bundle, kv_precision="f32", inference_precision="bf16")


@pytest.mark.parametrize("kv_precision", ["f32", "f16", "u8", "u4"])
def test_every_cache_runs_with_four_bits(int4_bundle: Path, kv_precision: CachePrecision) -> None:
    """On whatever precision this processor computes in."""
    with LLM(int4_bundle, EngineSettings("openvino", kv_precision=kv_precision)) as llm:
        assert llm.generate([1, 2, 3], max_new_tokens=2, ignore_stop_ids=True).answer().finish_reason == "length"
        assert llm.engine.info.kv_precision in (kv_precision, "bf16" if kv_precision == "f16" else None)
