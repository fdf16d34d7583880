"""What we ask of a GPU and what we refuse, with the CPU in its place: nothing here is known of a real one.

The core that stands in compiles for the CPU what is meant for the GPU, and allocates in a `StrictContext`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino as ov
import pytest

from edge.runtime.bundle import open_bundle
from edge.runtime.engines import openvino_paged
from edge.runtime.engines.openvino_paged import OpenVINOPagedEngine, open_paged
from edge.runtime.engines.openvino_properties import gpu_properties
from edge.runtime.errors import DeviceError, SettingsError
from edge.runtime.exact import exact_settings
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests.runtime.strict_context import StrictContext

GPU = EngineSettings("openvino", "GPU", kv_cache_bytes=1 << 20, max_context=96)


class StandIn:
    """A core of a machine with a GPU, whose work the CPU does."""

    def __init__(self, kind: str = "INTEGRATED", without_context: bool = False) -> None:
        self._core = ov.Core()
        self._kind, self._without_context = kind, without_context
        self.asked: dict[str, Any] = {}

    @property
    def available_devices(self) -> list[str]:
        return ["CPU", "GPU"]

    def read_model(self, path: Path) -> Any:
        return self._core.read_model(path)

    def get_versions(self, _device: str) -> dict[str, Any]:
        return {}

    def get_property(self, device: str, name: str) -> Any:
        assert device == "GPU"
        if name == "DEVICE_TYPE":
            return f"Type.{self._kind}"
        assert name == "SUPPORTED_PROPERTIES"
        return {"ACTIVATIONS_SCALE_FACTOR": "RW"}

    def get_default_context(self, device: str) -> StrictContext:
        assert device == "GPU"
        if self._without_context:
            raise RuntimeError("Exception from src/core.cpp:9:\nno context")
        return StrictContext()

    def compile_model(self, model: Any, device: str, asked: dict[str, Any]) -> Any:
        assert device == "GPU"
        self.asked = asked
        cache = {"i8": "u8", None: "u8"}.get(asked.get("KV_CACHE_PRECISION"), asked.get("KV_CACHE_PRECISION"))
        chosen = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": cache, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        return self._core.compile_model(model, "CPU", chosen)


def stand_in(monkeypatch: pytest.MonkeyPatch, core: StandIn) -> StandIn:
    monkeypatch.setattr(openvino_paged, "make_core", lambda: core)
    return core


def test_the_path_of_a_gpu(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers as on the CPU, out of memory that Python does not see."""
    plain = EngineSettings("openvino", "CPU", kv_precision="u8", inference_precision="f32", max_context=96)
    with LLM(tiny_bundle, plain) as llm:
        expected = [llm.generate(text, max_new_tokens=9, ignore_stop_ids=True).text() for text in ("one", "one two")]
    core = stand_in(monkeypatch, StandIn())
    with LLM(tiny_bundle, GPU) as llm:
        engine = llm.engine
        assert isinstance(engine, OpenVINOPagedEngine)
        assert engine.memory_kind == "device"
        assert (engine.info.device, engine.info.kv_precision) == ("GPU", "u8")
        assert engine.identity["device"] == "GPU"
        found = [llm.generate(text, max_new_tokens=9, ignore_stop_ids=True).text() for text in ("one", "one two")]
    assert found == expected
    assert core.asked == {"ACTIVATIONS_SCALE_FACTOR": -1.0}, "whatever else a GPU does is its plugin's own choice"


def test_a_context_that_a_gpu_does_not_give_is_one_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, StandIn(without_context=True))
    with pytest.raises(DeviceError, match="GPU allocates no memory for a KV cache: no context"):
        open_paged(open_bundle(tiny_bundle), GPU)


def test_a_discrete_gpu_takes_no_cache_that_it_cannot_copy(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_paged, "properties", lambda *_args: {"KV_CACHE_PRECISION": "u4"})
    bundle = open_bundle(tiny_bundle)
    stand_in(monkeypatch, StandIn("DISCRETE"))
    with pytest.raises(DeviceError, match="less than 8 bits a value, which cannot be copied"):
        open_paged(bundle, GPU)
    stand_in(monkeypatch, StandIn("INTEGRATED"))
    engine = open_paged(bundle, GPU)
    assert (engine.memory_kind, engine.info.kv_precision) == ("host", "u4")


def test_xattention_takes_one_sequence_at_a_time(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, StandIn())
    bundle = open_bundle(tiny_bundle)
    assert open_paged(bundle, GPU).info.max_sequences > 1
    monkeypatch.setattr(openvino_paged, "tokens_per_block", lambda *_args: 256)
    assert open_paged(bundle, GPU).info.max_sequences == 1


def test_a_cache_without_a_name_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a future plugin may choose."""
    stand_in(monkeypatch, StandIn())
    monkeypatch.setattr(openvino_paged, "KV_PRECISIONS", ("f16", "i8"))
    with pytest.raises(DeviceError, match="stores its KV cache in u8; set kv_precision to f16"):
        open_paged(open_bundle(tiny_bundle), GPU)


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"kv_precision": "f32"}, "kv_precision", "kv_precision is f32, expected f16, u8, i8 on a GPU"),
        ({"kv_precision": "bf16"}, "kv_precision", "kv_precision is bf16"),
        ({"kv_precision": "u4"}, "kv_precision", "kv_precision is u4"),
        ({"inference_precision": "bf16"}, "inference_precision", "inference_precision is bf16, expected f32 or f16"),
        ({"threads": 2}, "threads", "threads is 2, but a GPU has none to set"),
    ],
)
def test_what_a_gpu_does_not_compute(options: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        gpu_properties(EngineSettings("openvino", "GPU", **options), ())
    assert refused.value.param == param


def test_what_a_gpu_is_told() -> None:
    def told(*supported: str, **options: Any) -> dict[str, Any]:
        return gpu_properties(EngineSettings("openvino", "GPU", **options), supported)

    assert told() == {}
    assert told("ACTIVATIONS_SCALE_FACTOR", "KV_CACHE_PRECISION") == {"ACTIVATIONS_SCALE_FACTOR": -1.0}
    assert told(reproducible=True) == {"KV_CACHE_PRECISION": "f16"}
    assert told(reproducible=True, kv_precision="i8") == {"KV_CACHE_PRECISION": "i8"}
    assert told(inference_precision="f32", kv_precision="f16", dynamic_quantization_group=0) == {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f16",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }


def test_a_cpu_takes_no_signed_cache(tiny_bundle: Path) -> None:
    with pytest.raises(SettingsError, match="kv_precision is i8, expected f32, f16, bf16, u8 or u4 on a CPU"):
        LLM(tiny_bundle, EngineSettings("openvino", kv_precision="i8"))


def test_what_is_exact_on_a_device() -> None:
    """On a GPU it is something that the GPU does."""
    for device, kv_precision, bound in (("CPU", "f32", 1e-3), ("GPU", "f16", 1e-2), ("gpu.1", "f16", 1e-2)):
        exact = exact_settings(EngineSettings("openvino", device, max_context=96))
        assert (exact.settings.kv_precision, exact.settings.max_context) == (kv_precision, 96)
        assert (exact.settings.inference_precision, exact.settings.dynamic_quantization_group) == ("f32", 0)
        assert exact.bound <= bound
        if device != "CPU":
            assert "KV_CACHE_PRECISION" in gpu_properties(exact.settings, ())
