"""A bundle's IR compiled through the NPU plugin, now or ahead of time.

In: a core, a bundle, settings and lengths. Out: a compiled model. Knows nothing about what is computed with it.

A blob is weightless: it takes weights from the bundle's own file, which is checked before. Its key holds all that the
compiled model depends on: the plugin, the driver, the properties and the model.
"""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import openvino as ov

from edge.runtime import compiled
from edge.runtime.bundle import MODEL_BIN, MODEL_XML, Bundle
from edge.runtime.engines.openvino_core import make_core
from edge.runtime.engines.openvino_graph import read_graph
from edge.runtime.engines.openvino_npu_lengths import Lengths
from edge.runtime.engines.openvino_npu_properties import computing, properties
from edge.runtime.errors import DeviceError, EdgeError, OutputError, telling_line
from edge.runtime.machine import family_of, processor_name
from edge.runtime.notices import notice
from edge.runtime.settings import EngineSettings
from edge.runtime.terminal_text import on_one_line

PLUGIN = "NPU"  # also where it computes on the CPU
WEIGHTLESS = {"CACHE_MODE": "OPTIMIZE_SIZE"}

logger = logging.getLogger(__name__)


def compiled_model(bundle: Bundle, settings: EngineSettings, lengths: Lengths) -> Any:  # ov.CompiledModel
    """Return a compiled model: one that was made ahead of time, if it fits. Raises BundleError and DeviceError."""
    core = make_core()
    found = _imported(core, bundle, settings, lengths)
    return _compile(core, bundle, settings, lengths) if found is None else found


def compile_ahead(bundle: Bundle, settings: EngineSettings, lengths: Lengths) -> tuple[Path, int]:
    """Compile, and keep the result in the settings' folder; return its path and bytes.

    Raises BundleError, DeviceError and OutputError.
    """
    core = make_core()
    buffer = io.BytesIO()
    model = _compile(core, bundle, settings, lengths)
    try:
        model.export_model(buffer)
    except RuntimeError as error:
        raise DeviceError(
            f"{settings.device} gives no compiled model of {bundle.path}: "
            f"{on_one_line(telling_line(error, last=True))}; update its driver, or do without"
        ) from error
    raw = buffer.getvalue()
    return compiled.keep(_folder(settings), _key(core, bundle, settings, lengths), raw, bundle.path), len(raw)


def _compile(core: ov.Core, bundle: Bundle, settings: EngineSettings, lengths: Lengths) -> Any:
    xml = bundle.path / MODEL_XML
    try:
        model = read_graph(core, xml, bundle.manifest.spec)
        return core.compile_model(model, PLUGIN, properties(settings, lengths) | WEIGHTLESS)
    except EdgeError:
        raise
    except Exception as error:  # RuntimeError, and what bindings raise for bytes that are not text
        raise DeviceError(
            f"{settings.device} cannot run {xml} through the NPU plugin: "
            f"{on_one_line(telling_line(error, last=True))}; `edge verify --device NPU` says what it needs"
        ) from error


def _imported(core: ov.Core, bundle: Bundle, settings: EngineSettings, lengths: Lengths) -> Any:
    """Return a model that was compiled ahead of time; None if there is none that fits."""
    try:
        folder = _folder(settings)
    except OutputError:  # a user without a home
        return None
    key = _key(core, bundle, settings, lengths)
    blob = compiled.find(folder, key)
    if blob is None:
        return None
    family = family_of(settings.device)
    try:
        if family == "CPU":  # the plugin forgets what its parts compute in
            core.set_property(family, computing(settings))
        weights = {"WEIGHTS_PATH": str(bundle.path / MODEL_BIN)}
        found = core.import_model(blob, PLUGIN, properties(settings, lengths) | weights)
    except Exception as error:
        notice(
            f"the compiled model in {folder} cannot be used: {on_one_line(telling_line(error, last=True))}; it is "
            "compiled now"
        )
        return None
    logger.info("%s: imported from %s", bundle.path, folder)
    return found


def _folder(settings: EngineSettings) -> Path:
    return compiled.default_folder() if settings.compiled_folder is None else Path(settings.compiled_folder)


def _key(core: ov.Core, bundle: Bundle, settings: EngineSettings, lengths: Lengths) -> dict[str, str]:
    """Return all that a compiled model depends on."""
    device, files = settings.device, bundle.manifest.files
    plugin = core.get_versions(PLUGIN)[PLUGIN]
    if family_of(device) == "CPU":
        driver = processor_name()
    else:
        names = ("DEVICE_ARCHITECTURE", "NPU_DRIVER_VERSION", "NPU_COMPILER_VERSION")
        driver = " ".join(str(_property(core, device, name)) for name in names)
    return {
        "versions of OpenVINO": f"{plugin.build_number} {ov.get_version()}",
        "devices or drivers": driver,
        "settings": json.dumps(properties(settings, lengths), sort_keys=True),
        "model": bundle.manifest.model_sha256,
        "files": " ".join(files[name].sha256 for name in (MODEL_XML, MODEL_BIN)),
    }


def _property(core: ov.Core, device: str, name: str) -> object:
    try:
        return core.get_property(device, name)
    except RuntimeError:  # this plugin or driver does not have it
        return None
