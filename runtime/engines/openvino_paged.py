"""OpenVINO with paged attention: the bundle's stateful IR, its KV state replaced by block pools that we own.

In: an IR and settings. Out: an `Engine`. Knows nothing about tokenizers or sampling. The transformation is the one
openvino_genai uses (openvino src/core/src/pass/sdpa_to_paged_attention.cpp); block layouts are read off the compiled
model and never assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset13 as op
from openvino._offline_transformations import paged_attention_transformation

from edge.runtime.engines import EngineSettings
from edge.runtime.errors import DeviceError, SettingsError
from edge.runtime.kv.pool import BlockPool, Sequence
from edge.runtime.spec import ModelSpec

# Tokens a block holds: fixed by each plugin's kernels (openvino.genai src/cpp/src/continuous_batching, cache manager).
BLOCK_SIZES = {"CPU": 32, "GPU": 16}


class OpenVINOPagedEngine:
    """One compiled model and its KV pools. Raises DeviceError and SettingsError."""

    def __init__(self, model_xml: Path, spec: ModelSpec, weight_group_size: int, settings: EngineSettings) -> None:
        core = ov.Core()
        family = settings.device.split(".")[0].upper()
        if family not in BLOCK_SIZES:
            raise DeviceError(
                f"device {settings.device!r} has no paged attention; devices here: {', '.join(core.available_devices)}"
            )
        if not any(name.split(".")[0] == family for name in core.available_devices):
            raise DeviceError(
                f"device {settings.device!r} is not there; devices here: {', '.join(core.available_devices)}"
            )
        try:
            model = core.read_model(model_xml)
            paged_attention_transformation(model)
            _keep_wanted_rows(model)
            compiled = core.compile_model(model, settings.device, _properties(settings, family, weight_group_size))
        except RuntimeError as error:
            raise DeviceError(f"{settings.device} cannot run {model_xml}: {_first_line(error)}") from error
        self._request = compiled.create_infer_request()
        self._block_size = BLOCK_SIZES[family]

        ports = [port for port in compiled.inputs if port.any_name.startswith(("key_cache.", "value_cache."))]
        block_bytes: int = sum(
            port.element_type.bitwidth * math.prod(d.get_length() for d in list(port.partial_shape)[1:]) // 8
            for port in ports
        )
        limit: int = spec.max_position_embeddings if settings.max_context is None else settings.max_context
        if limit < 1 or limit > spec.max_position_embeddings:
            raise SettingsError(
                f"max_context is {limit}, expected 1 to {spec.max_position_embeddings}, the model's limit"
            )
        num_blocks = min(math.ceil(limit / self._block_size), settings.kv_cache_bytes // block_bytes)
        if num_blocks < 1 or (settings.max_context is not None and num_blocks * self._block_size < limit):
            raise SettingsError(
                f"a context of {limit} tokens needs {math.ceil(limit / self._block_size) * block_bytes:,} bytes of KV "
                f"cache, {settings.kv_cache_bytes:,} are allowed; lower max_context or raise kv_cache_bytes"
            )
        for port in ports:
            shape = [num_blocks, *(d.get_length() for d in list(port.partial_shape)[1:])]
            self._request.set_tensor(port.any_name, ov.Tensor(port.element_type, ov.Shape(shape)))
        self._inputs: dict[str, npt.NDArray[np.integer]] = {}  # the memory behind the request's small inputs
        self._pool = BlockPool(num_blocks, self._block_size)
        self._max_context = min(limit, num_blocks * self._block_size)
        self._kv_bytes_per_token = block_bytes // self._block_size

    @property
    def pool(self) -> BlockPool:
        return self._pool

    @property
    def max_context(self) -> int:
        return self._max_context

    @property
    def kv_bytes_per_token(self) -> int:
        return self._kv_bytes_per_token

    def forward(
        self, ids: npt.NDArray[np.int64], sequence: Sequence, rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        past, new = sequence.num_tokens, ids.size
        sequence.reserve(new)
        # Exactly the blocks that hold past + new tokens; an interrupted step may have reserved more.
        blocks = sequence.block_table[: math.ceil((past + new) / self._block_size)]
        self._set("input_ids", ids)
        self._set("position_ids", np.arange(past, past + new, dtype=np.int64))
        self._set("past_lens", np.array([past], np.int32))
        self._set("subsequence_begins", np.array([0, new], np.int32))
        self._set("block_indices", np.array(blocks, np.int32))
        self._set("block_indices_begins", np.array([0, len(blocks)], np.int32))
        self._set("max_context_len", np.array(past + new, np.int32))
        self._set("wanted_rows", rows)
        self._request.infer(share_outputs=True)  # or every call copies its logits
        sequence.commit(new)
        logits: npt.NDArray[np.float32] = self._request.get_output_tensor(0).data
        return logits.reshape(rows.size, -1)

    def _set(self, name: str, value: npt.NDArray[np.integer]) -> None:
        """Give an input its value: in place where its shape is that of the last call, which setting a tensor is not."""
        current = self._inputs.get(name)
        if current is not None and current.shape == value.shape:
            current[...] = value
        else:
            self._inputs[name] = value = value.copy()
            self._request.set_tensor(name, ov.Tensor(value, shared_memory=True))


@dataclass(frozen=True, slots=True)
class Device:
    """A device that OpenVINO finds on this machine."""

    name: str
    full_name: str
    engine: str | None  # which engine of ours runs on it


def find_devices() -> list[Device]:
    """All devices of this machine, usable or not."""
    core = ov.Core()
    return [
        Device(
            name,
            str(core.get_property(name, "FULL_DEVICE_NAME")).strip(),
            "openvino" if name.split(".")[0] in BLOCK_SIZES else None,
        )
        for name in core.available_devices
    ]


def _keep_wanted_rows(model: ov.Model) -> None:
    """Gather the wanted rows before the vocabulary projection, or a prefill would pay it for every token."""
    result = next(node for node in model.get_results() if "logits" in node.input_value(0).get_names())
    projection = result.input_value(0).get_node()
    rows = op.parameter(ov.PartialShape([-1]), ov.Type.i64, name="wanted_rows")
    rows.output(0).set_names({"wanted_rows"})
    picked = op.gather(projection.input_value(0), rows, op.constant(np.int64(0)))
    projection.input(0).replace_source_output(picked.output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()


def _properties(settings: EngineSettings, family: str, weight_group_size: int) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    if settings.inference_precision is not None:
        properties["INFERENCE_PRECISION_HINT"] = settings.inference_precision
    if settings.kv_precision is not None:
        properties["KV_CACHE_PRECISION"] = settings.kv_precision
    if settings.threads is not None:
        properties["INFERENCE_NUM_THREADS"] = settings.threads
    group = settings.dynamic_quantization_group
    if group is None and family == "CPU" and weight_group_size:
        # The fastest kernel takes activations in the groups that the weights have; larger ones fall off it.
        group = weight_group_size
    if group is not None:
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = group
    return properties


def _first_line(error: Exception) -> str:
    """The telling line of an OpenVINO message, which opens with source positions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if not line.startswith("Exception from")), "unknown error")
