"""ONNX Runtime on the CPU: a bundle's ONNX graph over KV buffers that we own.

In: the graphs of a bundle and settings. Out: an `Engine`. Knows nothing about tokenizers or sampling.

Past and present of a layer are one buffer of (1, n_kv, max_context, head_dim), bound once: a step writes its new tokens
behind the old ones and copies nothing, and trimming is a smaller length. A block of the pool is one such set of buffers
and holds a whole sequence.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge.runtime.engines import EngineName, EngineSettings
from edge.runtime.errors import DeviceError, SettingsError
from edge.runtime.kv.pool import BlockPool, Sequence
from edge.runtime.machine import available_bytes, physical_cores
from edge.runtime.spec import ModelSpec

MIN_VERSION = "1.22"  # the first with MatMulNBits of 8 bits (onnxruntime 1.22 release notes)
CACHE_TYPES: dict[str, type[np.floating[Any]]] = {"f32": np.float32, "f16": np.float16}


class OnnxRuntimeEngine:
    """One session and the KV buffers of one sequence. Raises DeviceError and SettingsError.

    graphs: (activations rounded to int8, keys and values in float16) -> file. int4: whether the linear layers' weights
    have 4 bits. What settings leave open: activations are rounded to int8 where weights have 4 bits, and the cache has
    32 bits; the figures behind that are in benchmarks/README.md.
    """

    def __init__(
        self, graphs: Mapping[tuple[bool, bool], Path], spec: ModelSpec, int4: bool, settings: EngineSettings
    ) -> None:
        _check_version()
        if settings.device.split(".")[0].upper() != "CPU":
            raise DeviceError(f"device {settings.device!r}: the onnx engine runs on the CPU; use --engine openvino")
        if settings.inference_precision not in (None, "f32"):
            raise SettingsError(f"inference_precision is {settings.inference_precision}, the onnx engine has f32")
        if (kv_precision := settings.kv_precision or "f32") not in CACHE_TYPES:
            raise SettingsError(f"kv_precision is {kv_precision}, the onnx engine has {' and '.join(CACHE_TYPES)}")
        int8 = int4 if settings.dynamic_quantization_group is None else settings.dynamic_quantization_group > 0
        path = graphs.get((int8, kv_precision == "f16")) or graphs[False, kv_precision == "f16"]  # float weights
        self._spec = spec
        self._pool = BlockPool(1, _context(spec, CACHE_TYPES[kv_precision], settings))
        self._session = _open(path, settings.threads or physical_cores())
        self._binding = self._session.io_binding()
        self._logits: npt.NDArray[np.float32] = np.empty((1, 0, spec.vocab_size), np.float32)
        self._inputs: dict[str, npt.NDArray[np.int64]] = {}  # the memory behind bound inputs
        self._mask = np.ones((1, self.max_context), np.int64)  # its first total tokens are bound
        self._cache = self._bind_cache(CACHE_TYPES[kv_precision])
        self._worker = ThreadPoolExecutor(1, "onnxruntime")

    @property
    def name(self) -> EngineName:
        return "onnx"

    @property
    def pool(self) -> BlockPool:
        return self._pool

    @property
    def max_context(self) -> int:
        return self._pool.block_size

    @property
    def kv_bytes_per_token(self) -> int:
        return sum(buffer.nbytes for buffer in self._cache) // self.max_context

    def forward(
        self, ids: npt.NDArray[np.int64], sequence: Sequence, rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        past, new = sequence.num_tokens, ids.size
        sequence.reserve(new)
        self._set("input_ids", ids[None])
        self._set("wanted_rows", rows)
        self._bind("attention_mask", self._mask[:, : past + new])
        if self._logits.shape[1] != rows.size:
            self._logits = np.empty((1, rows.size, self._spec.vocab_size), np.float32)
            self._bind_output("logits", self._logits)
        self._run()
        sequence.commit(new)
        logits: npt.NDArray[np.float32] = self._logits[0]
        return logits

    def _run(self) -> None:
        """One inference that Ctrl-C can end: in a second thread, since the call itself would keep the signal."""
        options = ort.RunOptions()
        future = self._worker.submit(self._session.run_with_iobinding, self._binding, options)
        try:
            future.result()
        except BaseException as error:
            options.terminate = True
            failure = future.exception()  # waits until it has ended
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise DeviceError(f"the engine failed: {_reason(failure or error)}; try a shorter context") from error

    def _set(self, name: str, values: npt.NDArray[np.int64]) -> None:
        """Give an input its values: in place where its shape is that of the last call."""
        current = self._inputs.get(name)
        if current is not None and current.shape == values.shape:
            current[...] = values
        else:
            self._inputs[name] = np.array(values, np.int64)
            self._bind(name, self._inputs[name])

    def _bind(self, name: str, values: npt.NDArray[Any]) -> None:
        self._binding.bind_input(name, "cpu", 0, values.dtype.type, values.shape, values.ctypes.data)

    def _bind_output(self, name: str, values: npt.NDArray[Any]) -> None:
        self._binding.bind_output(name, "cpu", 0, values.dtype.type, values.shape, values.ctypes.data)

    def _bind_cache(self, kind: type[np.floating[Any]]) -> list[npt.NDArray[Any]]:
        """Key and value buffers of all layers; their memory is touched only as tokens arrive."""
        spec, buffers = self._spec, []
        for name in (f"{layer}.{part}" for layer in range(spec.num_layers) for part in ("key", "value")):
            buffer = _untouched((1, spec.num_kv_heads, self.max_context, spec.head_dim), kind)
            self._bind(f"past_key_values.{name}", buffer)
            self._bind_output(f"present.{name}", buffer)
            buffers.append(buffer)
        return buffers


def _context(spec: ModelSpec, kind: type[np.floating[Any]], settings: EngineSettings) -> int:
    """Tokens that the buffers are made for. Raises SettingsError."""
    limit = spec.max_position_embeddings if settings.max_context is None else settings.max_context
    if limit < 1 or limit > spec.max_position_embeddings:
        raise SettingsError(f"max_context is {limit}, expected 1 to {spec.max_position_embeddings}, the model's limit")
    bytes_per_token = 2 * spec.num_layers * spec.kv_size * np.dtype(kind).itemsize  # keys and values
    allowed = min(settings.kv_cache_bytes, available_bytes()) // bytes_per_token
    if allowed < (1 if settings.max_context is None else limit):
        raise SettingsError(
            f"a context of {limit} tokens needs {limit * bytes_per_token:,} bytes of KV cache, "
            f"{settings.kv_cache_bytes:,} are allowed and {available_bytes():,} are free; "
            "lower max_context, raise kv_cache_bytes, or set kv_precision to f16"
        )
    return min(limit, allowed)


def _untouched(shape: tuple[int, ...], kind: type[np.floating[Any]]) -> npt.NDArray[Any]:
    """An array whose memory comes page by page as it is written.

    numpy asks for huge pages, of which the first token alone would take one a head and layer: 0.3 GB at 9B shapes.
    """
    memory = mmap.mmap(-1, math.prod(shape) * np.dtype(kind).itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, kind).reshape(shape)


def _open(path: Path, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised, and said in our words
    try:
        return ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # pybind's exceptions have no common base of their own
        raise DeviceError(
            f"onnxruntime {ort.__version__} cannot open {path}: {_reason(error)}; run edge verify, export the bundle "
            "again, or update onnxruntime"
        ) from error


def _check_version() -> None:
    found = tuple(int(part) for part in re.findall(r"\d+", ort.__version__)[:2])
    if found < tuple(int(part) for part in MIN_VERSION.split(".")):
        raise DeviceError(
            f"onnxruntime {ort.__version__} is too old, its operators lack 8 bits: expected {MIN_VERSION} or newer; "
            "pip install --upgrade onnxruntime"
        )


def _reason(error: BaseException) -> str:
    """onnxruntime's message on one line, without its code."""
    return " ".join(re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", str(error)).split())
