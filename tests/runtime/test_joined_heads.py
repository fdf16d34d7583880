"""Attention of a single token after many others, whose heads are rows of one product."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edge.export.graph.onnx.attention import joined_choices
from edge.export.pipeline import export
from edge.runtime import bundle as bundles
from edge.runtime.bundle import Bundle, OnnxKernels, open_bundle
from edge.runtime.differences import FLOAT32_BOUND
from edge.runtime.engines import onnx_kernels
from edge.runtime.engines.choice import open_engine
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.engines.onnx_kernels import kernels_of
from edge.runtime.kv.memory import ViewedMemory
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.settings import EngineSettings
from edge.runtime.spec import ModelSpec
from tests.tiny import TINIES, Tiny, make

FROM = 20  # tokens in the cache from which heads are joined, in these tests
IDS = np.random.default_rng(4).integers(0, 256, 60)
SETTINGS = EngineSettings("onnx", dynamic_quantization_group=0, max_context=64, threads=1)
SPEC = ModelSpec(
    architecture="glm",
    num_layers=1,
    hidden_size=8,
    intermediate_size=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rotary_dim=8,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    vocab_size=8,
    max_position_embeddings=8192,
    qkv_bias=False,
    tied_embeddings=False,
    output_norms=False,
)
NAMES = ("partial-bias-untied", "full-tied", "one-kv-head", "0414-32b", "qwen3", "no-gqa")


@pytest.fixture(scope="module", params=[tiny for tiny in TINIES if tiny.name in NAMES], ids=lambda tiny: tiny.name)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny: Tiny = request.param
    folder = tmp_path_factory.mktemp(tiny.name)
    make(tiny, folder / "checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "JOINED_FROM", FROM)
        export(folder / "checkpoint", folder / "bundle", "fp32", format="onnx")
    return folder / "bundle"


def apart(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine that takes heads one by one."""
    with monkeypatch.context() as patch:
        patch.setattr(onnx_kernels, "JOINS_HEADS", "99")
        return open_engine(open_bundle(bundle), SETTINGS)


def test_a_token_attends_to_what_it_attends_to_with_heads_apart(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after heads are joined, alone and beside other sequences."""
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
        # Of the first layer, before which there is no attention: the same bytes.
        assert isinstance(engine.pool.memory, ViewedMemory)
        first = engine.pool.memory.views(one.block_table[0], one.num_tokens)[:2]
        caches.append([view.copy() for view in first])
    assert np.abs(rows[0] - rows[1]).max() <= FLOAT32_BOUND * np.abs(rows[1]).max()
    for ours, theirs in zip(*caches, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_only_a_late_token_takes_the_other_way(bundle: Path) -> None:
    """Both calls of the operator are in a branch; the one that appends has as many heads as there are keys."""
    found = open_bundle(bundle)
    spec = found.manifest.spec
    for rows in joined_in(found):
        for part in found.onnx_parts(OnnxKernels(joined_heads=rows)):
            graph = onnx.load(part, load_external_data=False).graph
            branches = [attribute for node in graph.node if node.op_type == "If" for attribute in node.attribute]
            heads = {(attribute.name, *heads_of(attribute.g)) for attribute in branches}
            assert heads == {
                ("then_branch", spec.num_kv_heads, spec.num_heads // rows),
                ("else_branch", spec.num_heads),
            }
            assert not heads_of(graph)


def joined_in(found: Bundle) -> list[int]:
    """How many heads its graphs join, the fewest first."""
    return [rows for rows in range(1, 99) if found.onnx_parts(OnnxKernels(joined_heads=rows))]


def heads_of(graph: onnx.GraphProto) -> list[int]:
    """Of every attention in a graph, without its branches."""
    nodes = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    return [attribute.i for node in nodes for attribute in node.attribute if attribute.name == "num_heads"]


def test_every_thread_has_a_product_of_its_own(bundle: Path) -> None:
    """As many heads are joined as leave that; where few share keys, or there are many threads, none are."""
    found = open_bundle(bundle)
    heads, choices = found.manifest.spec.num_heads, joined_in(found)
    for threads in (1, 2, 3, 5, 64):
        fitting = [rows for rows in choices if heads // rows >= threads]
        assert kernels_of(found, SETTINGS, threads).joined_heads == max(fitting, default=0)
    assert not kernels_of(found, SETTINGS, None).joined_heads


@pytest.mark.parametrize(
    ("heads", "keys", "choices"),
    [(32, 2, [16, 4]), (48, 2, [12, 4]), (9, 3, [3]), (4, 2, []), (4, 4, []), (6, 1, [6, 3])],
)
def test_heads_that_share_keys_are_joined(heads: int, keys: int, choices: list[int]) -> None:
    spec = replace(SPEC, num_heads=heads, num_kv_heads=keys)
    assert joined_choices(spec) == choices
    assert not joined_choices(replace(spec, max_position_embeddings=bundles.JOINED_FROM))  # none are ever joined


@pytest.mark.parametrize("different", [{"reproducible": True}, {"kv_precision": "f16"}], ids=str)
def test_heads_stay_apart_where_bits_or_the_cache_ask_for_it(bundle: Path, different: dict[str, Any]) -> None:
    assert not kernels_of(open_bundle(bundle), replace(SETTINGS, **different), 1).joined_heads


def test_older_bundles_and_versions_have_heads_apart(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_bundle(bundle)
    files = {name: record for name, record in found.manifest.files.items() if "_joined" not in name}
    older = replace(found, manifest=replace(found.manifest, files=files))
    assert not kernels_of(older, SETTINGS, 1).joined_heads
    monkeypatch.setattr(onnx_kernels, "JOINS_HEADS", "99")
    assert not kernels_of(found, SETTINGS, 1).joined_heads
