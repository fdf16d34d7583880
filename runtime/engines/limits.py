"""How much context and memory an engine may take.

In: settings, the model's shape, and free memory. Out: tokens and bytes. Knows nothing about any single engine.
"""

from __future__ import annotations

from edge.runtime.errors import SettingsError
from edge.runtime.machine import available_bytes
from edge.runtime.settings import EngineSettings
from edge.runtime.spec import ModelSpec


def context_limit(settings: EngineSettings, spec: ModelSpec) -> int:
    """Return the requested tokens of context, by default the model's limit. Raises SettingsError above that limit."""
    limit = spec.max_position_embeddings if settings.max_context is None else settings.max_context
    if limit > spec.max_position_embeddings:
        raise SettingsError(
            f"max_context is {limit}, expected 1 to {spec.max_position_embeddings}, the model's limit",
            param="max_context",
        )
    return limit


def cache_budget(settings: EngineSettings) -> int:
    """Return the bytes that the KV cache may take, never more than are free where that is known.

    Raises SettingsError for a share of what is not known.
    """
    free, share = available_bytes(), settings.kv_cache_share
    if share is None:
        return settings.kv_cache_bytes if free is None else min(settings.kv_cache_bytes, free)
    if free is None:
        raise SettingsError(
            f"kv_cache_share is {share:g}, but how much memory is free is not known here; set kv_cache_bytes instead, "
            'or pip install "psutil"',
            param="kv_cache_share",
        )
    return int(free * share)
