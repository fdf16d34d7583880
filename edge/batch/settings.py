"""How a batch is run, as a setting with its allowed values. Knows nothing about files."""

from __future__ import annotations

from dataclasses import dataclass

from edge.runtime.rules import OneOf, Settings, Whole, setting
from edge.runtime.settings import USUAL_SAMPLINGS, UsualSampling


@dataclass(frozen=True, slots=True)
class BatchSettings(Settings):
    """How a batch is run. Raises SettingsError."""

    concurrency: int = setting(32, Whole(1, 256), "requests that are in work at once")
    sampling: UsualSampling = setting(
        "greedy",
        OneOf(USUAL_SAMPLINGS),
        "how tokens are chosen where a request does not say: greedily, or as recommended",
    )
