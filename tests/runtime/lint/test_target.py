"""What is known of a device before anything is compiled for it."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Any

import pytest

from edge.runtime.engines.openvino_npu_lengths import MAX_PROMPT, MAX_RESPONSE, lengths
from edge.runtime.errors import SettingsError
from edge.runtime.lint import target as targets
from edge.runtime.lint import target_here
from edge.runtime.lint.target import numbers_of
from edge.runtime.machine import available_bytes
from edge.runtime.settings import EngineSettings


class Core:
    """A machine with these devices, as OpenVINO's core tells it."""

    def __init__(self, **devices: dict[str, Any]) -> None:
        self._devices = devices
        self.available_devices = ["CPU", *devices]

    def get_versions(self, name: str) -> dict[str, str]:
        return {name: "2026.4.1"}

    def get_property(self, device: str, name: str) -> Any:
        try:
            return self._devices[device][name]
        except KeyError:
            raise RuntimeError(f"unsupported property {name}") from None


LUNAR_LAKE = Core(
    NPU={
        "DEVICE_ARCHITECTURE": "4000",
        "NPU_DRIVER_VERSION": 1004724,
        "NPU_DEVICE_TOTAL_MEM_SIZE": 1 << 50,
        "FULL_DEVICE_NAME": "Intel(R) AI Boost",
    },
    GPU={
        "DEVICE_ARCHITECTURE": "GPU: vendor=0x8086 arch=v20.4.4",
        "GPU_DEVICE_TOTAL_MEM_SIZE": 1000,
        "FULL_DEVICE_NAME": "Intel(R) Arc(TM) 140V GPU (16GB) (iGPU) ",
    },
)


def test_a_device_is_asked() -> None:
    npu = target_here("npu", core=LUNAR_LAKE)
    assert (npu.device, npu.platform, npu.driver, npu.name) == ("NPU", "4000", "1004724", "Intel(R) AI Boost")
    assert npu.found
    assert npu.plugin_problem is None
    room = available_bytes()
    assert room is not None
    assert npu.memory_bytes is not None
    assert abs(npu.memory_bytes - room) < 1 << 30, "not more than the machine has"
    gpu = target_here("GPU", core=LUNAR_LAKE)
    assert (gpu.name, gpu.memory_bytes, gpu.driver) == ("Intel(R) Arc(TM) 140V GPU (16GB) (iGPU)", 1000, None)


def test_a_device_that_is_not_here_is_not_asked() -> None:
    other = target_here("NPU", core=Core())
    assert (other.found, other.platform, other.driver, other.memory_bytes) == (False, None, None, None)
    assert other.plugin_problem == "its plugin loads and finds no such device"
    assert not target_here("GPU.1", core=Core(**{"GPU.0": {}})).found
    first = target_here("GPU", core=Core(**{"GPU.0": {}, "GPU.1": {}}))
    assert first.found, "the first of several"
    assert (first.platform, first.name) == (None, None), "what a plugin does not tell is not known"


def test_memory_that_is_allowed_is_memory_that_there_is() -> None:
    """Of this machine's device and of another's."""
    settings = EngineSettings(device="NPU", max_memory_bytes=500)
    for core in (LUNAR_LAKE, Core()):
        assert target_here("NPU", settings, core=core).memory_bytes == 500
    assert target_here("NPU", settings, emulated=True).memory_bytes == 500
    assert (
        target_here("GPU", EngineSettings(device="GPU", max_memory_bytes=1 << 50), core=LUNAR_LAKE).memory_bytes == 1000
    )


def test_a_plugin_that_does_not_load_says_why() -> None:
    class Broken(Core):
        def get_versions(self, name: str) -> dict[str, str]:
            raise RuntimeError(
                "Exception from src/plugin.cpp:1:\n\n"
                'Cannot load library "/opt/x/../libs/libgpu.so": libOpenCL.so.1: cannot open shared object file'
            )

    problem = target_here("GPU", core=Broken()).plugin_problem
    assert problem == "Cannot load library libgpu.so: libOpenCL.so.1: cannot open shared object file"


def test_this_machine_is_asked_without_a_core() -> None:
    target = target_here("NPU")
    assert target.openvino == metadata.version("openvino")
    assert target.found == (target.plugin_problem is None)


def test_the_pipeline_on_the_cpu_asks_no_device() -> None:
    settings = EngineSettings("openvino_npu", "CPU")
    target = target_here("NPU", settings, emulated=True, core=LUNAR_LAKE)
    assert (target.emulated, target.platform, target.driver, target.found) == (True, None, None, False)
    assert target.plugin_problem is None
    assert target.memory_bytes is not None


def test_without_openvino_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(targets, "version", missing)
    monkeypatch.setattr(targets, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "openvino", None)  # an import would fail
    target = target_here("NPU")
    assert (target.openvino, target.plugin_problem) == (None, "openvino is not installed")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_prompt_tokens": 1000},
        {"max_prompt_tokens": 2000, "prefill_chunk_tokens": 512, "max_response_tokens": 100},
        {"inference_precision": "f32", "kv_precision": "f32", "dynamic_quantization_group": 0},
    ],
)
def test_lengths_are_those_that_the_engine_compiles_for(options: dict[str, Any]) -> None:
    settings = EngineSettings("openvino_npu", "CPU", **options)
    expected = lengths(settings, 1 << 20, whole="kv_precision" in options)
    target = target_here("NPU", settings, emulated=True)
    assert (target.max_prompt, target.max_response, target.chunk) == (
        expected.prompt,
        expected.response,
        expected.chunk,
    )
    assert target.capacity == expected.capacity


def test_a_gpu_has_one_context() -> None:
    assert target_here("GPU", core=Core()).capacity == MAX_PROMPT + MAX_RESPONSE - 1
    for context in (1, 100, 512, 4096):
        target = target_here("GPU", EngineSettings(device="GPU", max_context=context), core=Core())
        assert target.max_prompt >= 1
        assert context - 1 <= target.capacity <= context


def test_a_chunk_that_no_npu_takes() -> None:
    with pytest.raises(SettingsError, match="expected a power of 2"):
        target_here("NPU", EngineSettings("openvino_npu", "NPU", prefill_chunk_tokens=96), core=Core())


def test_numbers_of_versions() -> None:
    assert numbers_of("32.0.100.4512") == (32, 0, 100, 4512)
    assert numbers_of("2026.4.0.dev20260814")[:2] == (2026, 4)
    assert numbers_of("") == ()
    assert numbers_of("none at all") == ()
