"""Runs the graphs that bundles are made of, a stage at a time, as exactly as an engine can.

In: the weights of one stage, float or packed, and its input. Out: what the engine's graph of that stage makes of it, in
float32 and with float activations. One runner for each format. Knows nothing about what the result should be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge.export.tensors import Float32Array, PackedTensor, Weight, as_unsigned
from edge.runtime.graph_names import HIDDEN, cached_names, past_name
from edge.runtime.spec import ModelSpec


class Runner(Protocol):
    """B batch, T tokens from position 0 on, H hidden size."""

    name: str

    def embedding(self, weights: Mapping[str, Weight], ids: npt.NDArray[np.int64], spec: ModelSpec) -> Float32Array:
        """(B, T) -> (B, T, H)."""

    def block(self, weights: Mapping[str, Weight], hidden: Float32Array, layer: int, spec: ModelSpec) -> Float32Array:
        """(B, T, H) -> (B, T, H)."""

    def head(self, weights: Mapping[str, Weight], hidden: Float32Array, spec: ModelSpec) -> Float32Array:
        """(B, T, H) -> (B, T, rows of the matrix)."""


class OpenVINORunner:
    """OpenVINO on the CPU."""

    name = "OpenVINO"

    def __init__(self) -> None:
        from edge.runtime.engines.openvino_core import make_core

        self._core = make_core()

    def embedding(self, weights: Mapping[str, Weight], ids: npt.NDArray[np.int64], spec: ModelSpec) -> Float32Array:
        from edge.export.graph.openvino.models import embedding_model

        return self._run(embedding_model(weights, spec), ids)

    def block(self, weights: Mapping[str, Weight], hidden: Float32Array, layer: int, spec: ModelSpec) -> Float32Array:
        from edge.export.graph.openvino.models import block_model

        positions = np.tile(np.arange(hidden.shape[1], dtype=np.int64), (hidden.shape[0], 1))
        return self._run(block_model(weights, layer, spec), hidden, positions)

    def head(self, weights: Mapping[str, Weight], hidden: Float32Array, spec: ModelSpec) -> Float32Array:
        from edge.export.graph.openvino.models import head_model

        return self._run(head_model(weights, spec), hidden)

    def _run(self, model: Any, *inputs: npt.NDArray[Any]) -> Float32Array:
        config = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        result: Float32Array = self._core.compile_model(model, "CPU", config)(list(inputs))[0]
        return result


class OnnxRunner:
    """ONNX Runtime on the CPU."""

    name = "ONNX Runtime"

    def embedding(self, weights: Mapping[str, Weight], ids: npt.NDArray[np.int64], spec: ModelSpec) -> Float32Array:
        from edge.export.graph.onnx.models import embedding_model
        from edge.export.graph.onnx.writer import Borrowed

        memory = Borrowed()
        return self._run(embedding_model(_unsigned(weights), spec, memory), memory.arrays, {"input_ids": ids})

    def block(self, weights: Mapping[str, Weight], hidden: Float32Array, layer: int, spec: ModelSpec) -> Float32Array:
        from edge.export.graph.onnx.models import block_model
        from edge.export.graph.onnx.writer import Borrowed

        memory = Borrowed()
        model = block_model(_unsigned(weights), layer, spec, memory)
        empty = np.zeros((hidden.shape[0], spec.num_kv_heads, 0, spec.head_dim), np.float32)
        feeds: dict[str, npt.NDArray[Any]] = {HIDDEN: hidden, "attention_mask": np.ones(hidden.shape[:2], np.int64)}
        return self._run(model, memory.arrays, feeds | {past_name(name): empty for name in cached_names([layer])})

    def head(self, weights: Mapping[str, Weight], hidden: Float32Array, spec: ModelSpec) -> Float32Array:
        from edge.export.graph.onnx.models import head_model
        from edge.export.graph.onnx.writer import Borrowed

        memory = Borrowed()
        return self._run(head_model(_unsigned(weights), spec, memory), memory.arrays, {HIDDEN: hidden})

    def _run(
        self, model: Any, constants: Mapping[str, npt.NDArray[Any]], feeds: Mapping[str, npt.NDArray[Any]]
    ) -> Float32Array:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in constants.values()]
        if values:
            options.add_external_initializers(list(constants), values)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        result: Float32Array = session.run(None, dict(feeds))[0]
        return result


def _unsigned(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    return {name: as_unsigned(w) if isinstance(w, PackedTensor) else w for name, w in weights.items()}
