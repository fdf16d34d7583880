"""What a picture may take of the memory beside the text model, decided before any graph is loaded.

In: what a tower takes, settings. Out: whether its graphs stay loaded, or a refusal with figures. Knows nothing about
how a tower is run. Limits are those that `engines/memory_plan` heeds.
"""

from __future__ import annotations

from edge.runtime.errors import MemoryLimitError
from edge.runtime.footprint import TowerFootprint
from edge.runtime.machine import anonymous_bytes, family_of, memory_limits
from edge.runtime.notices import notice
from edge.runtime.settings import EngineSettings
from edge.runtime.sizes import human_bytes


def check_room(needs: TowerFootprint, settings: EngineSettings, loaded: int = 0, *, any_size: bool = False) -> None:
    """Raise MemoryLimitError if a picture cannot become rows; say so if it is likely to be slow for want of memory.

    loaded: bytes that graphs of the tower take already. any_size: whether a smaller picture would take less.
    """
    smaller = ", send a smaller picture" if any_size else ""
    wanted = max(needs.least - loaded, 0)
    if settings.max_memory_bytes is not None:
        taken = anonymous_bytes() or 0
        if wanted + taken > settings.max_memory_bytes:
            raise MemoryLimitError(
                f"{_told(needs)}; with the {human_bytes(taken)} that this process has already, that is more than "
                f"max_memory_bytes, {human_bytes(settings.max_memory_bytes)}; raise it{smaller}, or lower max_context"
            )
        return
    for limit in memory_limits() if family_of(settings.device) == "CPU" else []:
        free = f"{human_bytes(limit.left_bytes)} are free (limit of {limit.name}: {human_bytes(limit.total_bytes)})"
        if wanted > limit.most_bytes:
            raise MemoryLimitError(
                f"{_told(needs)}; {free}; end other programs, raise that limit{smaller}, or take a smaller model"
            )
        if wanted > limit.left_bytes:
            notice(f"{_told(needs)}; {free}, so it may become very slow, or be ended by the system")


def stays_loaded(needs: TowerFootprint, settings: EngineSettings, loaded: int = 0) -> bool:
    """Whether all graphs fit beside the KV cache, which takes its memory late.

    loaded: bytes that they take already.
    """
    wanted = max(needs.whole - loaded, 0) + settings.kv_cache_bytes
    rooms = [limit.left_bytes for limit in memory_limits()]
    if settings.max_memory_bytes is not None:
        rooms.append(settings.max_memory_bytes - (anonymous_bytes() or 0))
    return all(wanted <= room for room in rooms)


def _told(needs: TowerFootprint) -> str:
    return (
        f"this picture takes {human_bytes(needs.least)} of memory: {human_bytes(needs.part)} for a part of the tower, "
        f"{human_bytes(needs.activations + needs.rows)} to compute"
    )
