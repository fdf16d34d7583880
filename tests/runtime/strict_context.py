"""A remote context in this process, for tests of our bookkeeping: it says nothing about any GPU.

Its tensors are real ones of OpenVINO, so the CPU's plugin computes in them; but Python may do no more with them than
with those of a GPU: numpy never sees them, and copies are refused for whatever intel_gpu's remote_tensor.cpp refuses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from edge.runtime.bundle import open_bundle
from edge.runtime.engines import openvino_paged
from edge.runtime.engines.openvino_memory import MemoryKind
from edge.runtime.engines.openvino_paged import OpenVINOPagedEngine, open_paged
from edge.runtime.settings import EngineSettings

LEFT = 77  # bytes that somebody left in what is allocated
_ALLOWED = {name for name in dir(ov.RemoteTensor) if name not in ("data", "bytes_data", "str_data")}


class StrictTensor(ov.Tensor):  # type: ignore[misc]  # openvino has no types
    """Memory that only copies reach."""

    copies = 0  # of all tensors

    def __getattribute__(self, name: str) -> Any:
        if name not in _ALLOWED and not name.startswith("__"):
            raise RuntimeError(f"Not Implemented: a remote tensor has no {name}")
        return super().__getattribute__(name)

    def copy_to(self, target: Any) -> None:
        _copy(self, target)

    def copy_from(self, source: Any) -> None:
        _copy(source, self)


def _copy(source: Any, target: Any) -> None:
    StrictTensor.copies += 1
    types = [ov.Tensor.get_element_type(tensor) for tensor in (source, target)]
    shapes = [ov.Tensor.get_shape(tensor) for tensor in (source, target)]
    if types[0] != types[1] or types[0].bitwidth < 8:
        raise RuntimeError(f"[GPU] Tensor element types are not equal, or too small: {types}")
    if shapes[0] != shapes[1]:
        raise RuntimeError(f"[GPU] a part has another shape: {shapes}")
    ov.Tensor.copy_to(source, target)


class StrictContext:
    """Allocates tensors of both kinds, up to a limit."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.left = limit

    def create_tensor(self, kind: Any, shape: Any, properties: dict[str, Any]) -> StrictTensor:
        assert properties == {}
        tensor = StrictTensor(kind, shape)
        ov.Tensor.copy_to(self.create_host_tensor(kind, shape), tensor)
        return tensor

    def create_host_tensor(self, kind: Any, shape: Any) -> Any:
        self.left -= kind.bitwidth * math.prod(shape) // 8
        if self.left < 0:
            raise RuntimeError("Exception from src/plugin.cpp:1:\n[GPU] CL_OUT_OF_RESOURCES")
        tensor = ov.Tensor(kind, shape)
        np.asarray(tensor.data).reshape(-1).view(np.uint8)[:] = LEFT
        return tensor


Open = Callable[[Path, EngineSettings, MemoryKind], OpenVINOPagedEngine]


def opener(monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens the CPU's real engine over blocks of one kind, where those of a GPU are in a `StrictContext`."""
    monkeypatch.setattr(openvino_paged, "_context", lambda _core, _device: StrictContext())

    def opened(path: Path, settings: EngineSettings, kind: MemoryKind) -> OpenVINOPagedEngine:
        return open_paged(open_bundle(path), settings, kind)

    return opened
