"""The tower's graphs on OpenVINO.

In: paths of graphs, a device, settings. Out: segments that run. Knows nothing about what a graph computes.

Everything of a picture is computed at once and alone, so the bits are the same each time, whatever the precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from edge.runtime.arrays import Array, Hidden
from edge.runtime.bundle import VISION_BIN
from edge.runtime.engines.openvino_core import make_core, openvino_told
from edge.runtime.engines.openvino_properties import gpu_properties
from edge.runtime.machine import family_of
from edge.runtime.settings import EngineSettings

_ADVICE = "run edge verify, or use another engine"
_ASK_EVERY_MS = 100  # whether a run was told to end


class OpenVINOGraphs:
    """One core. Nothing is loaded before it is asked for."""

    def __init__(self, device: str, settings: EngineSettings) -> None:
        self._device, self._settings = device, settings

    @cached_property
    def _core(self) -> ov.Core:
        return make_core()

    @cached_property
    def _properties(self) -> dict[str, Any]:  # values as `compile_model` takes them
        """What the settings say. The group of rounded activations is for texts: here, activations stay float."""
        settings, core = self._settings, self._core
        if family_of(self._device) != "CPU":
            found = gpu_properties(settings, core.get_property(self._device, "SUPPORTED_PROPERTIES"))
            return {name: value for name, value in found.items() if name != "KV_CACHE_PRECISION"}
        chosen = {
            "INFERENCE_PRECISION_HINT": settings.inference_precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "INFERENCE_NUM_THREADS": settings.threads,
        }
        return {name: value for name, value in chosen.items() if value is not None}

    @cached_property
    def _precision(self) -> str:
        with openvino_told(f"{self._device} does not tell its precision", _ADVICE):
            return self._settings.inference_precision or str(
                self._core.get_property(self._device, "INFERENCE_PRECISION_HINT").get_type_name()
            )

    @property
    def identity(self) -> Mapping[str, str]:
        return {
            "engine": "openvino",
            "engine version": ov.get_version(),
            "device": family_of(self._device),
            "inference precision": self._precision,
        }

    @property
    def value_bytes(self) -> int:
        return 4 if self._precision == "f32" else 2

    def open(self, path: Path, arrays: Mapping[str, Array]) -> OpenVINOSegment:
        """Compile a graph for one number of rows: with any number, each layer keeps buffers of its own."""
        with openvino_told(f"{self._device} cannot run {path}", _ADVICE):
            model = self._core.read_model(path, path.with_name(VISION_BIN))
            names = [port.any_name for port in model.inputs]
            model.reshape({name: ov.PartialShape(arrays[name].shape) for name in names if name in arrays})
            return OpenVINOSegment(self._core.compile_model(model, self._device, self._properties))


class OpenVINOSegment:
    """One compiled model. What a run leaves is freed after it: all segments together would keep a lot."""

    def __init__(self, model: Any) -> None:  # ov.CompiledModel
        self._model = model
        self._ending = False
        self.inputs = frozenset(port.any_name for port in model.inputs)

    def run(self, arrays: Mapping[str, Array]) -> Hidden:
        request = self._model.create_infer_request()
        with openvino_told("the engine failed at a picture", _ADVICE):
            # A tensor takes nothing that is read-only, and does not keep the array alive whose memory it shares.
            held = {name: np.require(array, requirements=["C", "W"]) for name, array in arrays.items()}
            for name, array in held.items():
                request.set_tensor(name, ov.Tensor(array, shared_memory=True))
            request.start_async()
            while not request.wait_for(_ASK_EVERY_MS):
                if self._ending:
                    request.cancel()
            request.wait()  # which raises what went wrong
            if self._ending:
                raise RuntimeError("it was told to end")
            found: Hidden = np.array(request.get_output_tensor(0).data, np.float32)
        del request
        with suppress(RuntimeError):  # not every device's plugin can
            self._model.release_memory()
        return found

    def end(self) -> None:
        self._ending = True
