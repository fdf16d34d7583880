"""Lengths and precisions that a model is compiled for on an NPU; nothing here is compiled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

import edge
from edge.export.pipeline import export
from edge.runtime.bundle import open_bundle
from edge.runtime.engines.choice import choose, engines_for, find_devices, open_engine
from edge.runtime.engines.openvino_npu_lengths import CHUNK, LEAST_CHUNK, MAX_PROMPT, MAX_RESPONSE, lengths
from edge.runtime.engines.openvino_npu_properties import check_precisions, computing, properties
from edge.runtime.errors import DeviceError, LintError, SettingsError
from edge.runtime.exact import exact_settings
from edge.runtime.settings import EngineSettings
from tests.tiny import Tiny, make

NAME = "openvino_npu"
EXACT: dict[str, Any] = {"inference_precision": "f32", "kv_precision": "f32", "dynamic_quantization_group": 0}
POWERS = [2**n for n in range(3, 12)]


def test_the_defaults() -> None:
    found = lengths(EngineSettings(NAME), 131072, whole=False)
    assert (found.prompt, found.response, found.chunk) == (MAX_PROMPT, MAX_RESPONSE, CHUNK)
    assert (found.capacity, found.context) == (1535, 1536)
    small = lengths(EngineSettings(NAME), 256, whole=False)
    assert (small.prompt, small.response, small.chunk) == (64, 256, 32)


@given(
    st.none() | st.integers(1, 5000),
    st.none() | st.integers(1, 5000),
    st.none() | st.sampled_from(POWERS),
    st.integers(2, 10000),
    st.booleans(),
)
def test_lengths_are_rounded_up_as_the_plugin_does(
    prompt: int | None, response: int | None, chunk: int | None, limit: int, whole: bool
) -> None:
    settings = EngineSettings(NAME, max_prompt_tokens=prompt, max_response_tokens=response, prefill_chunk_tokens=chunk)
    try:
        found = lengths(settings, limit, whole=whole)
    except SettingsError:
        assert prompt is not None or response is not None or chunk is not None  # the defaults always fit
        return
    assert found.prompt % 64 == found.response % 64 == found.prompt % found.chunk == 0
    assert found.prompt >= (prompt or 1)
    assert found.response >= (response or 1)
    assert found.prompt - (prompt or found.prompt) < max(64, found.chunk)
    assert found.whole == whole
    assert whole or (LEAST_CHUNK <= found.chunk < found.prompt and found.chunk & (found.chunk - 1) == 0)
    again = replace(settings, max_prompt_tokens=found.prompt, max_response_tokens=found.response)
    if max(found.prompt, found.response) < limit:
        assert lengths(again, limit, whole=whole) == found  # what was rounded is not rounded again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill_chunk_tokens": 48}, "prefill_chunk_tokens is 48, expected a power of 2 from 8 on"),
        ({"prefill_chunk_tokens": 4}, "prefill_chunk_tokens is 4, expected a power of 2 from 8 on"),
        ({"prefill_chunk_tokens": 1024}, "prefill_chunk_tokens is 1024, expected less than max_prompt_tokens, 1024"),
        ({"max_prompt_tokens": 4096}, "max_prompt_tokens is 4096, expected 1 to 4095"),
        ({"max_response_tokens": 5000}, "max_response_tokens is 5000, expected 1 to 4096"),
    ],
)
def test_lengths_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        lengths(EngineSettings(NAME, **options), 4096, whole=False)


def test_a_float32_cache_is_for_prompts_that_are_read_whole() -> None:
    """With chunks, NPUW gives garbage without a word."""
    exact = EngineSettings(NAME, **EXACT, prefill_chunk_tokens=256)
    with pytest.raises(SettingsError, match="prefill_chunk_tokens is 256, expected 1024 or more with a float32 cache"):
        lengths(exact, 4096, whole=True)
    assert lengths(replace(exact, prefill_chunk_tokens=1024), 4096, whole=True).whole
    with pytest.raises(SettingsError, match="kv_precision is f32, expected f16: the NPU plugin computes rightly"):
        check_precisions(EngineSettings(NAME, kv_precision="f32"))
    check_precisions(EngineSettings(NAME, **EXACT))


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"device": "NPU", "inference_precision": "f32"}, "inference_precision"),
        ({"device": "NPU", "inference_precision": "bf16"}, "inference_precision"),
        ({"device": "NPU", "dynamic_quantization_group": 32}, "dynamic_quantization_group"),
        ({"device": "NPU", "threads": 2}, "threads"),
        ({"kv_precision": "u8"}, "kv_precision"),
        ({"kv_precision": "bf16"}, "kv_precision"),
    ],
)
def test_precisions_that_no_npu_has_are_refused(options: dict[str, Any], param: str) -> None:
    with pytest.raises(SettingsError) as refused:
        check_precisions(EngineSettings(NAME, **options))
    assert refused.value.param == param


def test_what_verify_asks_for_is_what_a_device_has() -> None:
    for device in ("NPU", "CPU"):
        check_precisions(exact_settings(EngineSettings(NAME, device)).settings)


def test_a_prompt_is_read_in_pieces_that_the_plugin_keeps_or_whole() -> None:
    settings = EngineSettings(NAME)
    found = properties(settings, lengths(settings, 8192, whole=False))
    assert found["NPUW_LLM_ENABLE_CONTINUOUS_PREFILL"] == "YES"
    assert found["NPUW_LLM_PREFILL_HINT"] == "DYNAMIC"
    assert found["INFERENCE_PRECISION_HINT"] == "f32"  # nearer to an NPU's float16 than bfloat16 is
    assert "INFERENCE_PRECISION_HINT" not in computing(replace(settings, device="NPU"))
    exact = replace(settings, **EXACT)
    whole = properties(exact, lengths(exact, 8192, whole=True))
    assert whole["NPUW_LLM_PREFILL_HINT"] == "STATIC"
    assert "NPUW_LLM_ENABLE_CONTINUOUS_PREFILL" not in whole
    assert "NPUW_LLM_MAX_GENERATION_TOKEN_LEN" not in {*found, *whole}  # more than 1 is silently wrong


def test_it_is_taken_for_an_npu_and_elsewhere_only_by_name(int4_bundle: Path) -> None:
    bundle = open_bundle(int4_bundle)
    assert engines_for(bundle, "NPU") == [NAME]
    assert choose(bundle, EngineSettings(device="NPU")) == NAME
    assert NAME not in engines_for(bundle, "CPU")
    assert choose(bundle, EngineSettings(NAME)) == NAME
    cpu = next(engines for device, engines in find_devices().items() if device.name == "CPU")
    assert NAME not in cpu


@pytest.mark.parametrize("engine", ["auto", NAME])
def test_a_machine_without_an_npu_says_how_to_try_it(engine: str, int4_bundle: Path) -> None:
    with pytest.raises(DeviceError, match=r"device 'NPU' does not exist on this machine; devices here: .*; to try the"):
        edge.load(int4_bundle, "NPU", engine=engine)
    with pytest.raises(DeviceError, match="device 'GPU': the openvino_npu engine runs on NPUs"):
        edge.load(int4_bundle, "GPU", engine=NAME)


def test_nothing_that_a_rule_calls_a_crash_is_compiled(tmp_path: Path) -> None:
    """Three blocks in groups of 128: NPUW makes graphs that do not compile, here as on an NPU."""
    make(Tiny("three", hidden_size=128, intermediate_size=256), tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "bundle", "int4-sym-g128", format="openvino")
    with pytest.raises(LintError, match=r"npu-blocks.*\[crash\]"):
        open_engine(open_bundle(tmp_path / "bundle"), EngineSettings(NAME))


@pytest.mark.parametrize("name", ["max_prompt_tokens", "max_response_tokens", "prefill_chunk_tokens"])
def test_other_engines_refuse_lengths(name: str, int4_bundle: Path) -> None:
    with pytest.raises(SettingsError, match=f"{name} is for engine openvino_npu; the onnx engine takes any length"):
        edge.load(int4_bundle, engine="onnx", **{name: 64})  # type: ignore[arg-type]  # any of the three
