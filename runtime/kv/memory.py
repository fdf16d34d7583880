"""The bytes behind a pool's blocks, and how a part of a block is read, copied and written.

In: shapes. Out: buffers that an engine computes in, and views of single blocks in them. Knows nothing about who holds
a block or what its tokens are.

Memory is mapped and left untouched, so that it is taken page by page as tokens arrive.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge.runtime.errors import CacheError

Array = npt.NDArray[Any]


class BlockMemory(Protocol):
    """Where the keys and values of blocks are."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers."""

    def views(self, block: int, num_tokens: int) -> list[Array]:
        """Writable views of a block's first tokens, one a buffer; the same shapes for every block."""

    def blank(self, block: int) -> None:
        """Forget what a block held, where `views` may show more than the tokens that were asked for."""


def copy_block(memory: BlockMemory, source: int, target: int, num_tokens: int) -> None:
    """Copy the first tokens of one block to another."""
    for old, new in zip(memory.views(source, num_tokens), memory.views(target, num_tokens), strict=True):
        new[...] = old


class PagedMemory:
    """Blocks whose inside is the engine's own affair: they are copied whole."""

    def __init__(self, num_blocks: int, buffer_bytes: Sequence[int]) -> None:
        """`buffer_bytes`: what one block takes in each buffer."""
        self.buffers = [untouched((num_blocks, size), np.uint8) for size in buffer_bytes]
        self.block_bytes = sum(buffer_bytes)

    def views(self, block: int, num_tokens: int) -> list[Array]:  # noqa: ARG002  (a block cannot be cut)
        return [buffer[block] for buffer in self.buffers]

    def blank(self, block: int) -> None:
        for buffer in self.buffers:
            buffer[block] = 0


class NoMemory:
    """What a closed engine leaves: whoever still wants blocks of it gets a CacheError."""

    block_bytes = 0

    def views(self, block: int, num_tokens: int) -> list[Array]:
        raise CacheError(f"block {block} of {num_tokens} tokens: this model has been closed; load it again")

    def blank(self, block: int) -> None:
        raise CacheError(f"block {block}: this model has been closed; load it again")


class SlotMemory:
    """Blocks that hold a whole sequence each, in buffers of (n_kv, max_context, head_dim)."""

    def __init__(self, num_slots: int, num_buffers: int, shape: tuple[int, int, int], kind: type[np.generic]) -> None:
        self.slots = [[untouched((1, *shape), kind) for _ in range(num_buffers)] for _ in range(num_slots)]
        self.block_bytes = num_buffers * math.prod(shape) * np.dtype(kind).itemsize

    def views(self, block: int, num_tokens: int) -> list[Array]:
        return [buffer[0, :, :num_tokens] for buffer in self.slots[block]]

    def blank(self, block: int) -> None:
        """Views are cut: they never show what an earlier sequence left."""


def untouched(shape: tuple[int, ...], kind: type[np.generic]) -> Array:
    """An array whose memory comes page by page as it is written.

    numpy asks for huge pages, of which the first token alone would take one a head and layer: 0.3 GB at 9B shapes.
    """
    memory = mmap.mmap(-1, math.prod(shape) * np.dtype(kind).itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, kind).reshape(shape)
