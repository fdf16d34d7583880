"""How many tokens a block holds is read from the compiled model, and refused where that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino as ov
import openvino.opset13 as op
import pytest

from edge.runtime.engines.openvino_caches import CacheInput, caches_of, tokens_per_block
from edge.runtime.errors import DeviceError
from edge.runtime.llm import LLM
from edge.runtime.settings import CachePrecision, EngineSettings

HEADS = {"key_cache.0": 128, "value_cache.0": 128, "key_cache.1": 128, "value_cache.1": 128}


def graph(**shapes: tuple[str, list[int]]) -> Any:
    """A graph with inputs of these types and shapes: it has the same face as a compiled model."""
    inputs = []
    for name, (kind, shape) in shapes.items():
        parameter = op.parameter(ov.PartialShape(shape), getattr(ov.Type, kind))
        parameter.output(0).set_names({name.replace("_0", ".0").replace("_1", ".1")})
        inputs.append(parameter)
    return ov.Model([op.result(op.convert(parameter, "f32")) for parameter in inputs], inputs)


def tokens(key: list[int], value: list[int], kind: str) -> int:
    return tokens_per_block(
        caches_of(graph(key_cache_0=(kind, [-1, *key]), value_cache_0=(kind, [-1, *value]), input_ids=("i64", [-1]))),
        HEADS,
    )


@pytest.mark.parametrize(
    ("key", "value", "kind", "expected"),
    [
        ([2, 32, 128], [2, 32, 128], "f32", 32),  # the CPU's
        ([2, 32, 128], [2, 32, 128], "bf16", 32),
        ([2, 40, 128], [2, 32, 136], "u8", 32),
        ([2, 48, 128], [2, 32, 144], "u4", 32),
        ([2, 128, 16], [2, 16, 128], "f16", 16),  # a GPU's, as read in its plugin's source
        ([2, 128, 20], [2, 16, 132], "i8", 16),
        ([2, 128, 20], [2, 16, 132], "u8", 16),
        ([2, 256, 128], [2, 256, 128], "f16", 256),  # with XAttention
        ([2, 128, 320], [2, 256, 132], "u8", 256),
        ([2, 256, 132], [2, 256, 132], "i8", 256),
        ([2, 128, 128], [2, 128, 128], "f16", 128),  # either way
    ],
)
def test_known_layouts(key: list[int], value: list[int], kind: str, expected: int) -> None:
    assert tokens(key, value, kind) == expected


@pytest.mark.parametrize(
    ("key", "value", "kind", "message"),
    [
        ([2, 16, 16], [2, 16, 128], "f16", r"key_cache\.0 .* \[2, 16, 16\], expected 16 tokens by 128 values"),
        ([2, 128, 20], [2, 16, 128], "f16", r"key_cache\.0 .* \[2, 128, 20\]"),  # real values have no scales
        ([2, 132, 20], [2, 16, 132], "i8", r"key_cache\.0 .* \[2, 132, 20\]"),  # scales on both sides
        ([2, 128, 12], [2, 16, 132], "i8", r"key_cache\.0 .* \[2, 128, 12\]"),
        ([2, 128, 16], [2, 128, 16], "f16", r"key_cache\.0 .* \[2, 128, 16\], expected 128 tokens"),
        ([2, 128, 16], [2, 16, 132], "f16", r"value_cache\.0 .* \[2, 16, 132\]"),
        ([2, 128, 20], [2, 16, 124], "i8", r"value_cache\.0 .* \[2, 16, 124\]"),
        ([2, 0, 128], [2, 0, 128], "f16", r"key_cache\.0"),
        ([128, 16], [2, 16, 128], "f16", r"key_cache\.0 .* \[\?,128,16\], expected \[blocks, heads, \., \.\]"),
        ([2, 128, -1], [2, 16, 128], "f16", r"key_cache\.0 .* \[\?,2,128,\?\], expected .* of fixed sizes"),
    ],
)
def test_a_layout_that_is_not_understood_is_refused(key: list[int], value: list[int], kind: str, message: str) -> None:
    with pytest.raises(DeviceError, match=f"{message}.*; this version of OpenVINO lays blocks out in another way"):
        tokens(key, value, kind)


def test_all_layers_agree() -> None:
    layers = {"key_cache_0": [-1, 2, 128, 16], "value_cache_0": [-1, 2, 16, 128]}
    more = {"key_cache_1": [-1, 2, 32, 128], "value_cache_1": [-1, 2, 32, 128]}
    found = caches_of(graph(**{name: ("f16", shape) for name, shape in (layers | more).items()}))
    with pytest.raises(
        DeviceError, match=r"hold 16 in key_cache\.0 and 32 in key_cache\.1 tokens, expected one number"
    ):
        tokens_per_block(found, HEADS)
    for lost in range(4):
        with pytest.raises(DeviceError, match="without its counterpart"):
            tokens_per_block([cache for index, cache in enumerate(found) if index != lost], HEADS)
    with pytest.raises(DeviceError, match=r"key_cache\.0 without its counterpart"):
        tokens_per_block(found, {})
    with pytest.raises(DeviceError, match="hold no tokens"):
        tokens_per_block([], HEADS)


@pytest.mark.parametrize("kv_precision", ["f32", "f16", "u8", "u4"])
def test_what_the_plugin_here_compiles(tiny_bundle: Path, kv_precision: CachePrecision) -> None:
    """With the demo's bytes of a token, whatever the block."""
    chosen = EngineSettings("openvino", kv_precision=kv_precision, inference_precision="f32", kv_cache_bytes=1 << 20)
    with LLM(tiny_bundle, chosen) as llm:
        caches: list[CacheInput] = llm.engine.caches  # type: ignore[attr-defined]
        assert llm.engine.pool.block_size == 32
        assert [cache.name for cache in caches[:2]] == ["key_cache.0", "value_cache.0"]
        assert llm.engine.info.kv_bytes_per_token == sum(cache.block_bytes for cache in caches) // 32
        assert llm.engine.memory_kind == "arrays"  # type: ignore[attr-defined]
