"""What a model will take of the memory that it may take, decided before a byte of its weights is read.

In: a bundle, an engine's name, settings. Out: the settings with a KV cache that fits, or a refusal with figures. Knows
nothing about how an engine computes: what each takes is in `runtime/footprint.py`.

A limit that was given holds for all memory of this process that the system cannot drop: a mapped file does not count,
since its pages can be read again. Where none was given, the limits of this machine, of a container and of the process
hold. A model is then refused only if it could not be loaded even after everything was dropped and swapped that can be;
if it is likely to be too large, a line says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from edge.runtime.bundle import Bundle
from edge.runtime.engines.limits import context_limit, prefill_chunk
from edge.runtime.errors import MemoryLimitError, SettingsError
from edge.runtime.footprint import Footprint, footprint
from edge.runtime.machine import MemoryLimit, anonymous_bytes, family_of, memory_limits
from edge.runtime.notices import notice
from edge.runtime.settings import CachePrecision, EngineSettings
from edge.runtime.sizes import human_bytes
from edge.runtime.spec import ModelSpec

LEAST_CONTEXT = 512  # tokens; a model that cannot hold these is of no use, unless max_context asks for fewer
USUAL_PRECISION: dict[str, CachePrecision] = {"onnx": "f32"}  # of the KV cache; other engines take 16 bits
FREED = "end other programs, or take a smaller model"


class Needs(NamedTuple):
    """What a model takes, in bytes that the system cannot drop, beside what this process has taken already."""

    fixed: int  # weights and working memory, at the peak
    least_cache: int  # of the shortest context that is wanted
    weights: int

    @property
    def least(self) -> int:
        return self.fixed + self.least_cache


def within_memory(bundle: Bundle, engine: str, weight_bytes: int, settings: EngineSettings) -> EngineSettings:
    """Return the settings with a KV cache that fits beside everything else.

    Reads nothing of the bundle. Raises MemoryLimitError for a model that does not fit, and SettingsError for a cache
    that was asked for and does not.
    """
    spec = bundle.manifest.spec
    needs, token_bytes = _needs(spec, engine, weight_bytes, settings)
    taken = anonymous_bytes() or 0
    limits = memory_limits() if family_of(settings.device) == "CPU" else []
    what = f"{bundle.path} on {engine}"
    if settings.max_memory_bytes is not None:
        room = _room_below(settings.max_memory_bytes, needs, taken, what, settings)
    else:
        _refuse_beyond(limits, needs, what)
        room = min((limit.left_bytes for limit in limits), default=1 << 62) - needs.fixed
    _warn_beyond(limits, needs, what)
    wanted = _wanted(settings, limits)
    if settings.max_context is not None:
        _check_context(settings, needs, token_bytes, room)
    cache = max(min(wanted, room), needs.least_cache)
    usable = cache // token_bytes
    if cache < wanted and usable < (most := context_limit(settings, spec)) and wanted // token_bytes > usable:
        notice(
            f"the KV cache gets {human_bytes(cache)}, what memory is left for it: {usable:,} of {most:,} tokens",
            usual=True,
        )
    return replace(settings, kv_cache_bytes=cache, kv_cache_share=None)


def fits(bundle: Bundle, engine: str, weight_bytes: int, settings: EngineSettings) -> bool:
    """Whether a model would be loaded with these settings."""
    needs, _ = _needs(bundle.manifest.spec, engine, weight_bytes, settings)
    if settings.max_memory_bytes is not None:
        return needs.least + (anonymous_bytes() or 0) <= settings.max_memory_bytes
    limits = memory_limits() if family_of(settings.device) == "CPU" else []
    return all(needs.least <= limit.most_bytes for limit in limits)
