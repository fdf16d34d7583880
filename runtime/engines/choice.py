"""Which engine runs a bundle, and where: the one place where that is decided.

In: a bundle and settings. Out: an open `Engine`. An engine's package is imported when the engine is opened, so that it
may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from edge.runtime import bundle as bundles
from edge.runtime.bundle import Bundle, OnnxKernels
from edge.runtime.engines import Engine, EngineName, EngineSettings, cache_budget
from edge.runtime.errors import BundleError, DeviceError
from edge.runtime.machine import processor_name

PACKAGES: dict[EngineName, str] = {"onnx": "onnxruntime", "openvino": "openvino"}  # engine -> what it needs
LONG_PROMPT = 1500  # tokens, from where on OpenVINO's faster prefill makes up for its longer start


@dataclass(frozen=True, slots=True)
class Device:
    """A device of this machine."""

    name: str
    full_name: str
    engines: tuple[EngineName, ...]  # that run on it


def open_engine(bundle: Bundle, settings: EngineSettings) -> Engine:
    """The engine for a bundle. Raises BundleError, DeviceError and SettingsError."""
    return (_open_onnx if choose(bundle, settings) == "onnx" else _open_openvino)(bundle, settings)


def choose(bundle: Bundle, settings: EngineSettings) -> EngineName:
    """The engine that settings name; for "auto", the first of these that can run here and whose line holds.

        onnx      on a CPU, for weights of 4 bits: it starts in a third of the time and decodes faster; unless prompts
                  are long, or a float32 cache of max_context does not fit
        openvino  everything else: it takes in long prompts faster, multiplies 8-bit weights faster, has 8-bit caches
                  and other devices

    The figures are in benchmarks/README.md; `edge bench --engine all` shows how right this is on a machine. Raises
    BundleError and DeviceError.
    """
    if settings.engine != "auto":
        return settings.engine
    able = engines_for(bundle, settings.device)
    if len(able) == 1:
        return able[0]
    manifest = bundle.manifest
    short = (settings.expected_prompt_tokens or 0) < LONG_PROMPT
    cache_bytes = (settings.max_context or 0) * manifest.spec.kv_values_per_token * 4
    fits = cache_bytes <= cache_budget(settings)
    return "onnx" if manifest.fewest_bits == 4 and short and fits else "openvino"


def engines_for(bundle: Bundle, device: str) -> list[EngineName]:
    """Engines that can run a bundle on a device. Raises BundleError and DeviceError where there is none."""
    on_cpu = device.split(".", maxsplit=1)[0].upper() == "CPU"
    held: list[EngineName] = [name for name in PACKAGES if _holds(bundle, name) and (on_cpu or name == "openvino")]
    if not held:
        raise BundleError(f"{bundle.path} holds nothing that runs on {device}; export it with --format both")
    if not (able := [name for name in held if find_spec(PACKAGES[name])]):
        wanted = " or ".join(f"pip install 'edgeglm[{name}]'" for name in held)
        raise DeviceError(f"no engine for {bundle.path} is installed; {wanted}")
    return able


def find_devices() -> list[Device]:
    """All devices of this machine, usable or not."""
    onnx: tuple[EngineName, ...] = ("onnx",) if find_spec(PACKAGES["onnx"]) else ()
    if not find_spec(PACKAGES["openvino"]):
        return [Device("CPU", processor_name(), onnx)]
    from edge.runtime.engines import openvino_paged

    return [
        Device(name, full_name, (*(onnx if name == "CPU" else ()), *(("openvino",) if runs else ())))
        for name, full_name, runs in openvino_paged.find_devices()
    ]


def _holds(bundle: Bundle, engine: EngineName) -> bool:
    if engine == "openvino":
        return bundle.file(bundles.MODEL_XML) is not None
    return bool(bundle.onnx_parts(OnnxKernels()))


def _open_openvino(bundle: Bundle, settings: EngineSettings) -> Engine:
    if (path := bundle.file(bundles.MODEL_XML)) is None:
        raise BundleError(
            f"{bundle.path} holds no OpenVINO graph; use --engine onnx, or export it with --format openvino or both"
        )
    from edge.runtime.engines.openvino_paged import OpenVINOPagedEngine

    return OpenVINOPagedEngine(path, bundle.manifest.spec, bundle.manifest.fewest_bits, settings)


def _open_onnx(bundle: Bundle, settings: EngineSettings) -> Engine:
    if not _holds(bundle, "onnx"):
        raise BundleError(
            f"{bundle.path} holds no ONNX graph; use --engine openvino, or export it with --format onnx or both"
        )
    from edge.runtime.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, settings)
