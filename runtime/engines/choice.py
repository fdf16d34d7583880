"""Which engine runs a bundle: the one place where that is decided.

In: a bundle and settings. Out: an open `Engine`. An engine's package is imported when it is chosen, so that one can be
missing.
"""

from __future__ import annotations

from importlib.util import find_spec

from edge.runtime import bundle as bundles
from edge.runtime.bundle import Bundle
from edge.runtime.engines import Engine, EngineName, EngineSettings
from edge.runtime.errors import BundleError, DeviceError

PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime"}  # engine -> what it needs


def open_engine(bundle: Bundle, settings: EngineSettings) -> Engine:
    """The engine for a bundle. Raises BundleError, DeviceError and SettingsError."""
    return _OPENERS[choose(bundle, settings)](bundle, settings)


def choose(bundle: Bundle, settings: EngineSettings) -> EngineName:
    """The engine that `settings.engine` names, or for "auto" the best one of those that can run."""
    if settings.engine != "auto":
        return settings.engine
    on_cpu = settings.device.split(".")[0].upper() == "CPU"
    if not on_cpu:
        return "openvino"
    able = [name for name in ("onnx", "openvino") if holds(bundle, name) and find_spec(PACKAGES[name])]
    return able[0] if able else "openvino"


def holds(bundle: Bundle, engine: str) -> bool:
    """Whether a bundle has what an engine runs."""
    return bundle.file(bundles.MODEL_XML if engine == "openvino" else bundles.ONNX_GRAPHS[False, False]) is not None


def _open_openvino(bundle: Bundle, settings: EngineSettings) -> Engine:
    from edge.runtime.engines.openvino_paged import OpenVINOPagedEngine

    manifest, path = bundle.manifest, bundle.file(bundles.MODEL_XML)
    if path is None:
        raise BundleError(
            f"{bundle.path} holds no OpenVINO IR; use --engine onnx, or export it with --format openvino or both"
        )
    return OpenVINOPagedEngine(path, manifest.spec, manifest.weight_group_size, settings)


def _open_onnx(bundle: Bundle, settings: EngineSettings) -> Engine:
    from edge.runtime.engines.onnxruntime import OnnxRuntimeEngine

    found = {kernels: bundle.file(name) for kernels, name in bundles.ONNX_GRAPHS.items()}
    graphs = {kernels: path for kernels, path in found.items() if path is not None}
    if not graphs:
        raise BundleError(f"{bundle.path} holds no ONNX graph; use --engine openvino, or export it with --format both")
    tensors = bundle.manifest.tensors
    int4 = any(record.precision.startswith("int4") for name, record in tensors.items() if name.startswith("layers."))
    return OnnxRuntimeEngine(graphs, bundle.manifest.spec, int4, settings)


_OPENERS = {"openvino": _open_openvino, "onnx": _open_onnx}
