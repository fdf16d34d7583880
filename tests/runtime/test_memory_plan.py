"""What a model gets of its memory is decided before its weights are opened: figures, refusals, and what is lowered."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edge
from edge.runtime.bundle import Bundle, open_bundle
from edge.runtime.engines import choice, memory_plan
from edge.runtime.engines.choice import choose, open_engine, weight_bytes
from edge.runtime.engines.limits import MAX_RUNNING, cache_budget, max_running, prefill_chunk
from edge.runtime.engines.memory_plan import LEAST_CONTEXT, STEPS, USUAL_CHUNK, within_memory
from edge.runtime.engines.registry import ENGINES
from edge.runtime.errors import MemoryLimitError, SettingsError
from edge.runtime.llm import LLM
from edge.runtime.machine import MemoryLimit
from edge.runtime.settings import EngineSettings
from edge.runtime.spec import ModelSpec

MB, GB = 10**6, 10**9
NINE: dict[str, Any] = {  # of GLM-4-9B
    "num_layers": 40, "hidden_size": 4096, "intermediate_size": 13696, "num_heads": 32, "num_kv_heads": 2,
    "head_dim": 128, "vocab_size": 151_552, "max_position_embeddings": 131_072,
}  # fmt: skip
WEIGHTS = 5_300_000_000
BOTH = ("onnx", "openvino")
WEIGHT_FILES = ("openvino_model.bin", "model.onnx.data")


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture
def nine(tiny: Bundle) -> Bundle:
    """A bundle that says it is GLM-4-9B in 4 bits; nothing else is there of it."""
    spec = replace(tiny.manifest.spec, **NINE)
    return Bundle(tiny.path, replace(tiny.manifest, spec=spec, tensors={}))


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has taken nothing, on a machine that has everything."""
    monkeypatch.setattr(memory_plan, "anonymous_bytes", lambda: 0)
    limited(monkeypatch)


def limited(monkeypatch: pytest.MonkeyPatch, *limits: MemoryLimit) -> None:
    found = limits or (MemoryLimit("this machine", 64 * GB, 64 * GB, 64 * GB),)
    monkeypatch.setattr(memory_plan, "memory_limits", lambda: list(found))


def container(left: int, most: int | None = None) -> MemoryLimit:
    return MemoryLimit("the container", 8 * GB, left, left if most is None else most)


def cache(bundle: Bundle, engine: str, settings: EngineSettings) -> int:
    found = within_memory(bundle, engine, WEIGHTS, settings)
    assert found.kv_cache_share is None
    return found.kv_cache_bytes


@pytest.mark.parametrize("engine", BOTH)
def test_the_cache_gets_what_is_left(nine: Bundle, engine: str) -> None:
    sizes = [cache(nine, engine, EngineSettings(max_memory_bytes=limit * GB // 10)) for limit in (66, 68, 70, 80)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]
    assert all(0 < size <= 2 << 30 for size in sizes)
    assert cache(nine, engine, EngineSettings(max_memory_bytes=40 * GB)) == 2 << 30
    assert cache(nine, engine, EngineSettings(max_memory_bytes=40 * GB, kv_cache_bytes=GB)) == GB
    assert cache(nine, engine, EngineSettings()) == 2 << 30


@pytest.mark.parametrize("engine", BOTH)
def test_a_limit_is_kept_to_the_byte(nine: Bundle, engine: str) -> None:
    """Everything together takes no more than the limit, and what is left of it could not hold much more."""
    for limit in range(6 * GB, 12 * GB, GB):
        settings = EngineSettings(max_memory_bytes=limit)
        load = memory_plan._Load(nine, engine, WEIGHTS, settings)
        if load.peak(LEAST_CONTEXT) > limit:
            with pytest.raises(MemoryLimitError):
                within_memory(nine, engine, WEIGHTS, settings)
            continue
        longest = load.longest(limit)
        assert load.peak(longest) <= limit
        assert longest == load.limit or load.peak(longest + load.limit // STEPS) > limit
        assert load.fixed(longest) + cache(nine, engine, settings) <= limit


@pytest.mark.parametrize("engine", BOTH)
def test_a_model_that_does_not_fit_is_refused_with_figures(nine: Bundle, engine: str) -> None:
    with pytest.raises(
        MemoryLimitError,
        match=rf" on {engine} takes [\d.]+ GB of memory: [\d.]+ GB for weights, [\d.]+ MB for 512 tokens of cache, "
        r"[\d.]+ MB to compute; with the 0 B .*, and max_memory_bytes is 4\.00 GB; raise max_memory_bytes",
    ):
        within_memory(nine, engine, WEIGHTS, EngineSettings(max_memory_bytes=4 * GB))
    with pytest.raises(MemoryLimitError, match=r"131,072 tokens of cache.*a context of [\d,]+ tokens would fit"):
        within_memory(nine, engine, WEIGHTS, EngineSettings(max_memory_bytes=8 * GB, max_context=131_072))
    short = EngineSettings(max_memory_bytes=8 * GB, max_context=64)
    assert within_memory(nine, engine, WEIGHTS, short).max_context == 64


def test_what_the_process_has_taken_counts(nine: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EngineSettings(max_memory_bytes=8 * GB)
    before = cache(nine, "onnx", settings)
    monkeypatch.setattr(memory_plan, "anonymous_bytes", lambda: 100 * MB)
    assert cache(nine, "onnx", settings) == pytest.approx(before - 100 * MB, abs=MB)
    monkeypatch.setattr(memory_plan, "anonymous_bytes", lambda: 5 * GB)
    with pytest.raises(MemoryLimitError, match=r"with the 5\.00 GB that this process has already"):
        cache(nine, "onnx", settings)


def test_a_cache_that_was_asked_for_and_does_not_fit(nine: Bundle) -> None:
    with pytest.raises(SettingsError, match=r"kv_cache_bytes is 6,000,000,000, and max_memory_bytes of 8,0") as refused:
        within_memory(nine, "onnx", WEIGHTS, EngineSettings(max_memory_bytes=8 * GB, kv_cache_bytes=6 * GB))
    assert refused.value.param == "kv_cache_bytes"
    share = EngineSettings(max_memory_bytes=20 * GB, kv_cache_share=0.1)
    assert cache(nine, "onnx", share) == 2 * GB  # of what may be taken, not of all that is free


@pytest.mark.parametrize("engine", BOTH)
def test_without_a_limit_only_what_is_impossible_is_refused(
    nine: Bundle, engine: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limited(monkeypatch, container(4 * GB))
    with pytest.raises(
        MemoryLimitError, match=r"4\.00 GB are free \(limit of the container: 8\.00 GB\); .* give max_m"
    ):
        within_memory(nine, engine, WEIGHTS, EngineSettings())
    limited(monkeypatch, container(4 * GB, 20 * GB))  # the rest can be dropped or swapped
    assert cache(nine, engine, EngineSettings()) > 0
    assert "4.00 GB are free (limit of the container: 8.00 GB), so it may become very slow" in caplog.text
    caplog.clear()
    limited(monkeypatch, container(int(6.9 * GB)))
    roomy = cache(nine, engine, EngineSettings())
    assert 0 < roomy < 2 << 30, "the cache does not get what the weights will need"
    assert caplog.text == ""
    limited(monkeypatch, container(4 * GB))
    assert cache(nine, engine, EngineSettings(max_memory_bytes=20 * GB)) == 2 << 30  # whoever says so knows better
    assert "so it may become very slow" in caplog.text


def test_addresses_leave_room_for_what_is_never_filled(nine: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, MemoryLimit("ulimit -v", 12 * GB, 10 * GB, 10 * GB, addresses=True))
    beside = cache(nine, "onnx", EngineSettings())
    limited(monkeypatch, container(10 * GB))
    assert beside < cache(nine, "onnx", EngineSettings())


def test_other_devices_have_memory_of_their_own(nine: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, container(MB))
    assert within_memory(nine, "openvino", WEIGHTS, EngineSettings(device="GPU")) == EngineSettings(device="GPU")


def test_steps_are_smaller_where_little_was_given(nine: Bundle) -> None:
    spec = nine.manifest.spec
    free = EngineSettings()
    assert (prefill_chunk(free, spec, 512), max_running(free, spec)) == (512, MAX_RUNNING)
    tight = EngineSettings(max_memory_bytes=6 * GB)
    assert prefill_chunk(tight, spec, 512) == 512
    assert max_running(tight, spec) < MAX_RUNNING
    least = EngineSettings(max_memory_bytes=1)
    assert (prefill_chunk(least, spec, 512), prefill_chunk(least, spec, 128), max_running(least, spec)) == (32, 32, 4)
    found = [prefill_chunk(EngineSettings(max_memory_bytes=MB << shift), spec, 512) for shift in range(14)]
    assert found == sorted(found)


def test_auto_takes_the_engine_that_fits(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = choose(tiny, EngineSettings())
    other = next(name for name in BOTH if name != usual)
    monkeypatch.setattr(choice, "fits_memory", lambda _bundle, name, _size, _settings: name != usual)
    assert choose(tiny, EngineSettings()) == other
    monkeypatch.setattr(choice, "fits_memory", lambda *_: False)  # either is refused, with its figures
    assert choose(tiny, EngineSettings()) == usual
    assert choose(tiny, EngineSettings(other)) == other


def test_the_usual_chunks_are_those_of_the_engines() -> None:
    from edge.runtime.engines import onnxruntime, openvino_paged

    assert USUAL_CHUNK == {"onnx": onnxruntime.PREFILL_CHUNK, "openvino": openvino_paged.PREFILL_CHUNK}


@pytest.mark.parametrize("engine", BOTH)
def test_nothing_of_the_weights_is_opened_before_a_refusal(
    tiny_bundle: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    watching = [True]  # a hook cannot be taken away again

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            opened.append(Path(os.fsdecode(arguments[0])).name)

    sys.addaudithook(watch)
    with pytest.raises(MemoryLimitError):
        edge.load(tiny_bundle, engine=engine, max_memory_bytes=MB)
    assert "manifest.json" in opened
    assert not set(opened) & set(WEIGHT_FILES)
    limited(monkeypatch, container(1, 1))
    with pytest.raises(MemoryLimitError):
        LLM(tiny_bundle, EngineSettings(engine))
    assert not set(opened) & set(WEIGHT_FILES)
    watching.clear()


@pytest.mark.parametrize("engine", BOTH)
def test_an_engine_gets_what_was_planned(tiny: Bundle, engine: str) -> None:
    settings = EngineSettings(engine, max_memory_bytes=300 * MB, max_context=256)
    planned = within_memory(tiny, engine, weight_bytes(tiny, ENGINES[engine]), settings)
    opened = open_engine(tiny, settings)
    assert opened.pool.bytes <= planned.kv_cache_bytes <= cache_budget(planned)
    assert opened.info.prefill_chunk == prefill_chunk(settings, tiny.manifest.spec, USUAL_CHUNK[engine])
    assert opened.info.max_running == max_running(settings, tiny.manifest.spec)
    opened.close()


def test_the_spec_of_the_fixture_is_that_of_a_9b_model(nine: Bundle) -> None:
    spec: ModelSpec = nine.manifest.spec
    assert spec.num_parameters == pytest.approx(9.4e9, rel=0.01)
