"""How much context and memory an engine may take.

In: settings, the model's shape, and free memory. Out: tokens and bytes. Knows nothing about any single engine.
"""

from __future__ import annotations

from edge.runtime.errors import SettingsError
from edge.runtime.machine import available_bytes, memory_limits
from edge.runtime.settings import EngineSettings
from edge.runtime.spec import ModelSpec

MAX_RUNNING = 256  # requests at once; each has a row of logits
_ROW_COPIES = 2  # of a row of logits: the engine's, and the one that a token is chosen from
_STEP_SHARE = 10  # a step takes a tenth of the memory that was given, or less
_ROWS_SHARE = 20  # and the logits of all answers a twentieth
_LEAST_CHUNK, _LEAST_RUNNING = 32, 4


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


def prefill_chunk(settings: EngineSettings, spec: ModelSpec, usual: int) -> int:
    """Return how many tokens of prompts one step reads: fewer than usual where little memory was given."""
    if settings.max_memory_bytes is None:
        return usual
    width = 3 * spec.intermediate_size + spec.q_size + 2 * spec.kv_size + 4 * spec.hidden_size  # values, at the widest
    most = settings.max_memory_bytes // (_STEP_SHARE * 4 * width)
    while usual > max(most, _LEAST_CHUNK):
        usual //= 2
    return usual


def max_running(settings: EngineSettings, spec: ModelSpec) -> int:
    """Return how many requests run at once: fewer than usual where little memory was given."""
    if settings.max_memory_bytes is None:
        return MAX_RUNNING
    most = settings.max_memory_bytes // (_ROWS_SHARE * _ROW_COPIES * 4 * spec.vocab_size)
    return min(max(most, _LEAST_RUNNING), MAX_RUNNING)


def rows_bytes(settings: EngineSettings, spec: ModelSpec) -> int:
    """Return what the logits of all requests take that may run at once; without a limit, those of a few."""
    running = _LEAST_RUNNING if settings.max_memory_bytes is None else max_running(settings, spec)
    return running * _ROW_COPIES * 4 * spec.vocab_size


def addresses_are_limited() -> bool:
    """Whether memory counts that is mapped and never used, as with `ulimit -v`."""
    return any(limit.addresses for limit in memory_limits())
