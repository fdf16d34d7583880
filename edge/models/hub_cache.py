"""What a checkpoint from a hub has left in the hub's cache, and how that is freed.

In: what an export was given as its source. Out: the folder in the cache, its size, and the command of the hub's own
client that removes it. Reads the cache folder alone: no network, and nothing is removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge.export.checkpoint.sources import HUB_ID, PREFIX
from edge.runtime.files import bytes_in, shown_path

_FREEING = 'or let "hf cache delete --disable-tui" list what is in that cache'


@dataclass(frozen=True, slots=True)
class Cached:
    """A repository in the hub's cache."""

    repository: str
    path: Path
    bytes: int

    def told(self, size: str) -> str:
        """Return the sentence about it; `size` is its size for people."""
        return (
            f"the checkpoint {self.repository} is still in the hub's cache, {size}; to free them, delete "
            f"{shown_path(self.path)}, {_FREEING}"
        )


def find_cached(source: str) -> Cached | None:
    """Return what the cache has of a source; None for a source that is no hub id, or has left nothing."""
    match = HUB_ID.fullmatch(source.removeprefix(PREFIX))
    cache = None if match is None else _cache_folder()
    if match is None or cache is None:
        return None
    path = cache / f"models--{match['repo'].replace('/', '--')}"
    size = bytes_in(path)
    return Cached(match["repo"], path, size) if size else None


def _cache_folder() -> Path | None:
    """Return where the hub's client keeps what it downloads; None without it, as nothing was downloaded then."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    return Path(constants.HF_HUB_CACHE)
