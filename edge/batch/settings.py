"""How a batch is run, as a setting with its allowed values. Knows nothing about files."""

from __future__ import annotations

from dataclasses import dataclass

from edge.runtime.rules import Settings, Whole, setting


@dataclass(frozen=True, slots=True)
class BatchSettings(Settings):
    """How a batch is run. Raises SettingsError."""

    concurrency: int = setting(32, Whole(1, 256), "requests that are in work at once")
