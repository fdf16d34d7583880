"""Which engine runs a bundle on which device: the only place where that is decided.

In: a bundle, settings and the registry. Out: an open `Engine`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from edge.runtime.bundle import Bundle
from edge.runtime.engines.engine import Engine
from edge.runtime.engines.limits import cache_budget
from edge.runtime.engines.memory_plan import fits as fits_memory
from edge.runtime.engines.memory_plan import within_memory
from edge.runtime.engines.registry import ENGINES, Device, EngineRecord, find
from edge.runtime.errors import BundleError, DeviceError, MissingPackageError, SettingsError, plain, shown
from edge.runtime.settings import COMPILING_NAMES, EngineSettings

LONG_PROMPT = 1500  # tokens from which OpenVINO's faster prefill makes up for its longer start
SEVERAL = 2  # answers at once from which OpenVINO's passes over all of them are faster, and its start matters less

logger = logging.getLogger(__name__)


def open_engine(bundle: Bundle, settings: EngineSettings, *, beside: int = 0) -> Engine:
    """Open the engine for a bundle. Raises BundleError, DeviceError, MemoryLimitError and SettingsError.

    beside: as in `within_memory`.
    """
    record, settings = _ready(bundle, settings, beside)
    engine = record.open(bundle, settings)
    info = engine.info
    logger.info("%s: engine %s on %s, %s", bundle.path, info.name, info.device, info.context_told)
    return engine


def compile_ahead(bundle: Bundle, settings: EngineSettings) -> tuple[Path, int, str]:
    """Compile a bundle and keep the result for later loads; return its path, its bytes, and for what lengths it is.

    Raises as `open_engine`, OutputError, and SettingsError for an engine that is not compiled ahead.
    """
    record, settings = _ready(bundle, settings)
    if record.compile_ahead is None:
        others = " or ".join(other.name for other in ENGINES.values() if other.compile_ahead is not None)
        raise SettingsError(
            f"the {record.name} engine is not compiled ahead: it starts in seconds; for an NPU, use --device NPU, or "
            f"--engine {others}",
            param="engine",
        )
    return record.compile_ahead(bundle, settings)


def _ready(bundle: Bundle, settings: EngineSettings, beside: int = 0) -> tuple[EngineRecord, EngineSettings]:
    """Return the engine to open, and settings that fit the memory: all is checked that can be before it is opened."""
    record = find(choose(bundle, settings))
    if not record.holds(bundle):
        others = [other.name for other in ENGINES.values() if other.runs_on(settings.device) and other.holds(bundle)]
        use = f"use --engine {' or '.join(others)}, or " if others else ""
        raise BundleError(
            f"{bundle.path} holds no {record.graph}; {use}export it with --format {record.bundle_format} or both"
        )
    if not record.installed:
        raise MissingPackageError(f"{record.package} is not installed; {record.advice}")
    _check_lengths(record, settings)
    record.check(bundle, settings)
    if not record.fixed_lengths:
        settings = within_memory(bundle, record.name, weight_bytes(bundle, record), settings, beside=beside)
    bundle.check_weights(record.weights(bundle))  # before a library reads them, which may crash on wrong ones
    return record, settings


def _check_lengths(record: EngineRecord, settings: EngineSettings) -> None:
    """Raise SettingsError for settings of compiling, if an engine compiles for no lengths."""
    given = next((name for name in COMPILING_NAMES if getattr(settings, name) is not None), None)
    if given is not None and not record.fixed_lengths:
        others = " or ".join(other.name for other in ENGINES.values() if other.fixed_lengths)
        raise SettingsError(
            f"{given} is for engine {others}; the {record.name} engine takes any length up to max_context, so leave it "
            "out",
            param=given,
        )


def choose(bundle: Bundle, settings: EngineSettings) -> str:
    """Return the engine that the settings name; for "auto", the first of these that can run here and applies.

        onnx      on a CPU with 4-bit weights: it starts in a third of the time and decodes faster; but not if prompts
                  are long, several answers are to be written at once, a float32 cache of max_context does not fit, or
                  weights are links to another folder
        openvino  otherwise: it reads prompts faster, writes several answers in passes that they share, multiplies 8-bit
                  weights faster, has 8-bit caches, and runs on other devices

    The figures are in docs/findings.md; `edge bench --engine all` and `--clients` show whether this holds on a machine.
    Raises BundleError, DeviceError, and SettingsError for an unknown name.
    """
    if settings.engine != "auto":
        return find(settings.engine).name
    able = engines_for(bundle, settings.device)
    able = [name for name in able if ENGINES[name].reaches(bundle)] or able
    able = [name for name in able if fits_memory(bundle, name, weight_bytes(bundle, ENGINES[name]), settings)] or able
    if len(able) == 1:
        return able[0]
    manifest = bundle.manifest
    short = (settings.expected_prompt_tokens or 0) < LONG_PROMPT
    several = (settings.expected_clients or 1) >= SEVERAL
    cache_bytes = (settings.max_context or 0) * manifest.spec.kv_values_per_token * 4
    fits = cache_bytes <= cache_budget(settings)
    return "onnx" if manifest.fewest_bits <= 4 and short and fits and not several else "openvino"


def weight_bytes(bundle: Bundle, record: EngineRecord) -> int:
    """Return the size of the files with weights that an engine reads."""
    return sum(bundle.manifest.files[name].size for name in record.weights(bundle))


def engines_for(bundle: Bundle, device: str) -> list[str]:
    """Return the engines that can run a bundle on a device. Raises BundleError and DeviceError if there is none."""
    runs_there = [record for record in ENGINES.values() if record.runs_on(device)]
    if not runs_there:
        names = ", ".join(there.name for there in find_devices())
        raise DeviceError(f"device {shown(device)}: no engine runs on it, choose another; devices here: {names}")
    held = [record for record in runs_there if record.holds(bundle)]
    if not held:
        raise BundleError(f"{bundle.path} holds nothing that runs on {plain(device)}; export it with --format both")
    if not (able := [record.name for record in held if record.installed]):
        wanted = " or ".join(record.advice for record in held)
        raise DeviceError(f"no engine for {bundle.path} is installed; {wanted}")
    return able


def find_devices() -> dict[Device, list[str]]:
    """Return all devices of this machine, usable or not, with the names of the engines that run on them."""
    found: dict[str, tuple[Device, list[EngineRecord]]] = {}
    for record in ENGINES.values():
        for device in record.devices() if record.installed else ():
            found.setdefault(device.name, (device, []))[1].append(record)
    return {
        device: [record.name for record in records if record.runs_on(device.name)] for device, records in found.values()
    }
