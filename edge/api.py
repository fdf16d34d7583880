"""The Python entry points behind `edge.load`; `edge.export` is the callable package of that name."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from edge.runtime.engines import EngineSettings
from edge.runtime.llm import LLM, refuse_unknown


def load(bundle: str | Path, device: str = EngineSettings().device, **settings: Any) -> LLM:
    """Load a bundle onto a device; keywords are the fields of `EngineSettings`.

    Raises BundleError, DeviceError, TokenizerError and SettingsError.
    """
    refuse_unknown(settings, {field.name for field in fields(EngineSettings)})
    return LLM(bundle, EngineSettings(device=device, **settings))
