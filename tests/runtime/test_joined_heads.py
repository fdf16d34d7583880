"""Attention of a single token after many others, whose heads are rows of one product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edge.export.graph.onnx import attention
from edge.export.graph.onnx.attention import joined_heads
from edge.export.graph.onnx.files import kernel_choices
from edge.export.pipeline import export
from edge.runtime.bundle import OnnxKernels, open_bundle
from edge.runtime.differences import FLOAT32_BOUND
from edge.runtime.engines import onnx_kernels
from edge.runtime.engines.choice import open_engine
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.engines.onnx_kernels import kernels_of
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.settings import EngineSettings
from tests.runtime.blocks import views
from tests.tiny import TINIES, Tiny, make

FROM = 20  # tokens in the cache from which heads are joined, in these tests
IDS = np.random.default_rng(4).integers(0, 256, 60)
SETTINGS = EngineSettings("onnx", dynamic_quantization_group=0, max_context=64)
NAMES = ("partial-bias-untied", "full-tied", "one-kv-head", "0414-32b", "qwen3", "no-gqa")


@pytest.fixture(scope="module", params=[tiny for tiny in TINIES if tiny.name in NAMES], ids=lambda tiny: tiny.name)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny: Tiny = request.param
    folder = tmp_path_factory.mktemp(tiny.name)
    make(tiny, folder / "checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "JOINED_FROM", FROM)
        export(folder / "checkpoint", folder / "bundle", "fp32", format="onnx")
    return folder / "bundle"


def apart(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine that takes heads one by one."""
    with monkeypatch.context() as patch:
        patch.setattr(onnx_kernels, "JOINS_HEADS", "99")
        return open_engine(open_bundle(bundle), SETTINGS)


def test_a_token_attends_to_what_it_attends_to_with_heads_apart(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after heads are joined, alone and beside other sequences; keys and values are the same bytes."""
    rows, caches = [], []
    for engine in (open_engine(open_bundle(bundle), SETTINGS), apart(bundle, monkeypatch)):
        one, other = CacheSequence(engine.pool), CacheSequence(engine.pool)
        engine.forward(IDS[: FROM - 3], one, np.array([0]))
        engine.forward(IDS[20:50], other, np.array([0]))
        found = [engine.decode([Step(one, IDS[i : i + 1])])[0].copy() for i in range(FROM - 3, FROM + 12)]
        one.trim(FROM + 5)
        found.append(engine.decode([Step(one, IDS[40:41])])[0].copy())
        found += [logits.copy() for logits in engine.decode([Step(one, IDS[41:42]), Step(other, IDS[50:51])])]
        rows.append(np.concatenate(found))
        # The first layer's, which no attention has been before: bytes. Those of others follow the logits.
        first = views(engine.pool.memory, one.block_table[0], one.num_tokens)[:2]
        caches.append([view.copy() for view in first])
    assert np.abs(rows[0] - rows[1]).max() <= FLOAT32_BOUND * np.abs(rows[1]).max()
    for ours, theirs in zip(*caches, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_heads_that_share_no_keys_need_no_other_graph(bundle: Path) -> None:
    found = open_bundle(bundle)
    spec = found.manifest.spec
    shared = spec.num_heads > spec.num_kv_heads
    assert (joined_heads(spec) > 1) == shared
    assert bool(found.onnx_parts(OnnxKernels(joined_heads=True))) == shared
    assert kernels_of(found, SETTINGS).joined_heads == shared


def test_only_a_late_token_takes_the_other_way(bundle: Path) -> None:
    """Both calls of the operator are in a branch; what appends has as many heads as there are keys."""
    found = open_bundle(bundle)
    spec = found.manifest.spec
    for part in found.onnx_parts(OnnxKernels(joined_heads=True)):
        graph = onnx.load(part, load_external_data=False).graph
        assert not [node for node in graph.node if node.op_type == "GroupQueryAttention"]
        for node in (node for node in graph.node if node.op_type == "If"):
            branches = {attribute.name: attribute.g.node for attribute in node.attribute}
            heads = {
                name: [
                    a.i
                    for n in nodes
                    if n.op_type == "GroupQueryAttention"
                    for a in n.attribute
                    if a.name == "num_heads"
                ]
                for name, nodes in branches.items()
            }
            rows = joined_heads(spec)
            assert heads == {
                "then_branch": [spec.num_kv_heads, spec.num_heads // rows],
                "else_branch": [spec.num_heads],
            }


@pytest.mark.parametrize(
    "settings",
    [EngineSettings("onnx", reproducible=True), EngineSettings("onnx", kv_precision="f16")],
    ids=["reproducible", "f16"],
)
def test_heads_stay_apart_where_bits_must_not_depend_on_the_step(bundle: Path, settings: EngineSettings) -> None:
    assert not kernels_of(open_bundle(bundle), settings).joined_heads


def test_older_bundles_and_versions_have_heads_apart(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = open_bundle(bundle)
    for kernels in kernel_choices(packed=True, joined=True):
        if kernels.joined_heads:
            found.manifest.files.pop(kernels.part(0), None)  # type: ignore[attr-defined]  # read from JSON: a dict
    assert not kernels_of(found, SETTINGS).joined_heads
    monkeypatch.setattr(onnx_kernels, "JOINS_HEADS", "99")
    assert not kernels_of(open_bundle(bundle), SETTINGS).joined_heads
