"""The Python entry points behind `edge.load`; `edge.export` is the callable package of that name."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from edge.runtime.engines import EngineSettings
from edge.runtime.errors import SettingsError
from edge.runtime.extras import missing_packages_named
from edge.runtime.llm import LLM, refuse_unknown
from edge.runtime.speculation import SpeculationSettings


@missing_packages_named()
def load(
    bundle: str | Path,
    device: str = EngineSettings().device,
    *,
    speculation: bool | SpeculationSettings = False,
    draft_store: str | Path | None = None,
    **settings: Any,
) -> LLM:
    """Load a bundle onto a device; keywords are the fields of `EngineSettings`, and those of `LLM`.

    Raises BundleError, DeviceError, MissingPackageError, TokenizerError and SettingsError.
    """
    refuse_unknown(settings, {field.name for field in fields(EngineSettings)})
    if speculation is False and draft_store is not None:
        raise SettingsError("draft_store is what speculation drafts from; give speculation=True too")
    chosen = (SpeculationSettings() if speculation else None) if isinstance(speculation, bool) else speculation
    return LLM(bundle, EngineSettings(device=device, **settings), chosen, draft_store)
