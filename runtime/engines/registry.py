"""All engines, one record each; everything that lists engines reads them here.

In: nothing; packages are imported when an engine is opened, so that each may be missing. Out: `ENGINES`, in the order
of tables. To add an engine, write its file in this folder, and add its record here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge.runtime.errors import SettingsError, shown
from edge.runtime.extras import install_command
from edge.runtime.machine import family_of, processor_name
from edge.runtime.settings import KV_PRECISIONS, CachePrecision, EngineSettings

if TYPE_CHECKING:  # the command line lists engines without importing numpy
    from edge.runtime.bundle import Bundle
    from edge.runtime.engines.engine import Engine


@dataclass(frozen=True, slots=True)
class Device:
    """A device of this machine."""

    name: str  # "CPU", "GPU.0"
    full_name: str


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """What is known about an engine before it is opened."""

    name: str
    package: str  # the package that must be importable
    extra: str  # edgeglm[extra] installs it
    graph: str  # its part of a bundle, in words
    bundle_format: Literal["openvino", "onnx"]  # the `edge export --format` that makes that part
    families: tuple[str, ...]  # kinds of device that it runs on
    kv_precisions: tuple[CachePrecision, ...]
    reads_links: bool  # whether weights may be links to another folder
    holds: Callable[[Bundle], bool]  # whether a bundle has the files that it needs
    weights: Callable[[Bundle], list[str]]  # the files with weights that it reads
    open: Callable[[Bundle, EngineSettings], Engine]  # raises BundleError, DeviceError and SettingsError
    devices: Callable[[], list[Device]]  # all that its package finds on this machine, usable or not
    emulated_on: tuple[str, ...] = ()  # kinds of device that it runs on as well, but only when it is named
    fixed_lengths: bool = False  # whether it compiles for the lengths in `settings.COMPILING_NAMES`
    # Compiles and keeps the result, whose path, bytes and lengths it returns; raises as `open`, and OutputError.
    compile_ahead: Callable[[Bundle, EngineSettings], tuple[Path, int, str]] | None = None
    # Raises DeviceError and SettingsError for what cannot run, before weights are read.
    check: Callable[[Bundle, EngineSettings], None] = lambda _bundle, _settings: None

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None

    @property
    def advice(self) -> str:
        """How to install it."""
        return install_command(self.extra)

    def reaches(self, bundle: Bundle) -> bool:
        """Whether it can read a bundle's weights from their place."""
        return self.reads_links or not bundle.has_links(self.weights(bundle))

    def runs_on(self, device: str) -> bool:
        """Whether it is made for devices of this kind, even if this machine has none."""
        return family_of(device) in self.families


def find(name: str) -> EngineRecord:
    """Return the record of a name. Raises SettingsError, with all known names and how to install them."""
    if name in ENGINES:
        return ENGINES[name]
    close = get_close_matches(name.lower(), ENGINES, 1)
    hint = f", did you mean {close[0]!r}?" if close else ";"
    known = (f"{r.name} ({'installed' if r.installed else r.advice})" for r in ENGINES.values())
    raise SettingsError(f"engine {shown(name)} is unknown{hint} known are auto, {', '.join(known)}", param="engine")


def _holds_openvino(bundle: Bundle) -> bool:
    from edge.runtime.bundle import MODEL_XML

    return bundle.file(MODEL_XML) is not None


def _openvino_weights(bundle: Bundle) -> list[str]:
    from edge.runtime.bundle import MODEL_BIN

    return bundle.recorded(MODEL_BIN)


def _check_openvino(bundle: Bundle, settings: EngineSettings) -> None:
    """Refuse what a GPU would crash on or compute wrongly; that there is none is told when it is opened."""
    if family_of(settings.device) != "GPU":
        return
    from edge.runtime.lint import check, refuse, target_here

    target = target_here(settings.device, settings)
    if target.found:
        refuse(check(bundle, target))


def _open_openvino(bundle: Bundle, settings: EngineSettings) -> Engine:
    from edge.runtime.engines.openvino_paged import open_paged

    return open_paged(bundle, settings)


def _openvino_devices() -> list[Device]:
    from edge.runtime.engines.openvino_core import openvino_devices

    return [Device(name, full_name) for name, full_name in openvino_devices()]


def _open_openvino_npu(bundle: Bundle, settings: EngineSettings) -> Engine:
    from edge.runtime.engines.openvino_npu import OpenVINONpuEngine

    return OpenVINONpuEngine(bundle, settings)


def _compile_openvino_npu(bundle: Bundle, settings: EngineSettings) -> tuple[Path, int, str]:
    from edge.runtime.engines.openvino_npu import compile_ahead

    return compile_ahead(bundle, settings)


def _check_openvino_npu(bundle: Bundle, settings: EngineSettings) -> None:
    from edge.runtime.engines.openvino_npu import check

    check(bundle, settings)


def _holds_onnx(bundle: Bundle) -> bool:
    from edge.runtime.bundle import OnnxKernels

    return bool(bundle.onnx_parts(OnnxKernels()))


def _onnx_weights(bundle: Bundle) -> list[str]:
    from edge.runtime.bundle import MODEL_BIN, ONNX_DATA

    return bundle.recorded(MODEL_BIN, ONNX_DATA)


def _open_onnx(bundle: Bundle, settings: EngineSettings) -> Engine:
    from edge.runtime.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, settings)


_RECORDS = (
    EngineRecord(
        name="openvino",
        package="openvino",
        extra="openvino",
        graph="OpenVINO graph",
        bundle_format="openvino",
        families=("CPU", "GPU"),
        kv_precisions=KV_PRECISIONS,
        reads_links=True,
        holds=_holds_openvino,
        weights=_openvino_weights,
        open=_open_openvino,
        devices=_openvino_devices,
        check=_check_openvino,
    ),
    EngineRecord(
        name="onnx",
        package="onnxruntime",
        extra="onnx",
        graph="ONNX graph",
        bundle_format="onnx",
        families=("CPU",),
        kv_precisions=("f32", "f16"),
        reads_links=False,
        holds=_holds_onnx,
        weights=_onnx_weights,
        open=_open_onnx,
        devices=lambda: [Device("CPU", processor_name())],
    ),
    EngineRecord(
        name="openvino_npu",
        package="openvino",
        extra="openvino",
        graph="OpenVINO graph",
        bundle_format="openvino",
        families=("NPU",),
        kv_precisions=("f32", "f16"),
        reads_links=True,
        holds=_holds_openvino,
        weights=_openvino_weights,
        open=_open_openvino_npu,
        devices=_openvino_devices,
        emulated_on=("CPU",),
        fixed_lengths=True,
        compile_ahead=_compile_openvino_npu,
        check=_check_openvino_npu,
    ),
)
ENGINES: dict[str, EngineRecord] = {record.name: record for record in _RECORDS}
