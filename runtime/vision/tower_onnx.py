"""The tower's graphs on ONNX Runtime.

In: paths of graphs, settings. Out: segments that run. Knows nothing about what a graph computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edge.runtime.arrays import Array, Hidden
from edge.runtime.engines.onnx_session import session_options
from edge.runtime.errors import DeviceError, telling_line
from edge.runtime.machine import computing_threads
from edge.runtime.settings import EngineSettings
from edge.runtime.terminal_text import on_one_line

_CHOSEN_BY_ORT = 0  # threads


class OnnxGraphs:
    """How sessions are made."""

    value_bytes = 4

    def __init__(self, settings: EngineSettings) -> None:
        self._threads = computing_threads(settings.threads) or _CHOSEN_BY_ORT

    @property
    def identity(self) -> Mapping[str, str]:
        return {
            "engine": "onnx",
            "engine version": ort.__version__,
            "device": "CPU",
            "inference precision": "f32",
        }

    def open(self, path: Path, arrays: Mapping[str, Array]) -> OnnxSegment:  # noqa: ARG002  # takes any number of rows
        options = session_options(self._threads)
        options.enable_cpu_mem_arena = False  # each session would keep what its largest picture took
        options.enable_mem_pattern = False  # likewise
        try:
            return OnnxSegment(ort.InferenceSession(str(path), options, ["CPUExecutionProvider"]))
        except Exception as error:  # pybind's exceptions share no base class
            raise DeviceError(
                f"onnxruntime {ort.__version__} cannot open {path}: {on_one_line(telling_line(error))}; run edge "
                "verify, export the bundle again, or update onnxruntime"
            ) from error


class OnnxSegment:
    """One session."""

    def __init__(self, session: Any) -> None:  # onnxruntime has no types
        self._session = session
        self._options = ort.RunOptions()
        self.inputs = frozenset(value.name for value in session.get_inputs())

    def run(self, arrays: Mapping[str, Array]) -> Hidden:
        given = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        try:
            (found,) = self._session.run(None, given, self._options)
        except Exception as error:  # pybind's exceptions share no base class
            raise DeviceError(
                f"the engine failed at a picture: {on_one_line(telling_line(error))}; run edge verify, or use another "
                "engine"
            ) from error
        rows: Hidden = found
        return rows

    def end(self) -> None:
        self._options.terminate = True
