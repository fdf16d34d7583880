"""The memory of a pool's blocks, and how a part of a block is read, copied and written.

In: shapes. Out: buffers that an engine computes in, and views of single blocks in them. Knows nothing about who holds a
block, or what its tokens are.

Memory is mapped and left untouched, so that pages are taken only as tokens arrive.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from edge.runtime.arrays import Array
from edge.runtime.errors import CacheError, SettingsError

CAN_ADVISE = hasattr(mmap, "MADV_NOHUGEPAGE")  # on Linux


class BlockMemory(Protocol):
    """Where the keys and values of blocks are stored."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers."""

    def views(self, block: int, num_tokens: int) -> list[Array]:
        """Return writable views of a block's first tokens, one per buffer, with the same shapes for every block."""

    def blank(self, block: int) -> None:
        """Erase what a block held, if `views` may show more than the requested tokens."""

    def give_back(self, block: int) -> None:
        """Return the memory of a freed block to the system, if memory is taken token by token."""


def copy_block(memory: BlockMemory, source: int, target: int, num_tokens: int) -> None:
    """Copy the first tokens of one block to another."""
    for old, new in zip(memory.views(source, num_tokens), memory.views(target, num_tokens), strict=True):
        new[...] = old


class PagedMemory:
    """Blocks whose layout only the engine knows, so they are copied whole. Raises SettingsError."""

    def __init__(self, num_blocks: int, buffer_bytes: Sequence[int]) -> None:
        """buffer_bytes: what one block takes in each buffer."""
        self.block_bytes = sum(buffer_bytes)
        mappings = _mappings([num_blocks * size for size in buffer_bytes])
        self.buffers: list[Array] = [np.frombuffer(m, np.uint8).reshape(num_blocks, -1) for m in mappings]

    def views(self, block: int, num_tokens: int) -> list[Array]:  # noqa: ARG002  (a block cannot be cut)
        return [buffer[block] for buffer in self.buffers]

    def blank(self, block: int) -> None:
        for buffer in self.buffers:
            buffer[block] = 0

    def give_back(self, block: int) -> None:
        """Do nothing: blocks are small, and soon used again."""


class NoMemory:
    """The memory of a closed engine: using its blocks raises CacheError."""

    block_bytes = 0

    def views(self, block: int, num_tokens: int) -> list[Array]:
        raise CacheError(f"block {block} of {num_tokens} tokens: this model has been closed; load it again")

    def blank(self, block: int) -> None:
        raise CacheError(f"block {block}: this model has been closed; load it again")

    def give_back(self, block: int) -> None:
        """Do nothing: there is no memory left."""


class SlotMemory:
    """Blocks that hold a whole sequence each, as rows of buffers of (num_slots, n_kv, length, head_dim).

    A batch is computed in neighbouring rows, so blocks change rows when a batch needs it, and their written part is
    copied. With 9B shapes that takes up to 0.2 ms per token, most of it for fresh pages; computing one takes 40 ms.
    Raises SettingsError.
    """

    def __init__(self, num_slots: int, num_buffers: int, shape: tuple[int, int, int], kind: type[np.generic]) -> None:
        self.block_bytes = num_buffers * math.prod(shape) * np.dtype(kind).itemsize
        self._mappings = _mappings([num_slots * self.block_bytes // num_buffers] * num_buffers)
        self.buffers: list[Array] = [np.frombuffer(m, kind).reshape(num_slots, *shape) for m in self._mappings]
        self._row_of = list(range(num_slots))  # block -> row
        self._written = [0] * num_slots  # block -> its first tokens that may have been written since it was blank

    def close(self) -> None:
        """Give the memory back as soon as no view of it is left."""
        self.buffers.clear()
        self._mappings.clear()

    def views(self, block: int, num_tokens: int) -> list[Array]:
        """Return views of shape (n_kv, num_tokens, head_dim), which are the block's until the next `gather`."""
        self._written[block] = max(self._written[block], num_tokens)
        return [buffer[self._row_of[block], :, :num_tokens] for buffer in self.buffers]

    def blank(self, block: int) -> None:
        """Count nothing as written. Views are cut, so they never show what an earlier sequence left."""
        self._written[block] = 0

    def give_back(self, block: int) -> None:
        for mapping, buffer in zip(self._mappings, self.buffers, strict=True):
            _give_back_tokens(mapping, buffer, self._row_of[block], 0, self._written[block])
        self._written[block] = 0

    def rows(self, num_tokens: Mapping[int, int]) -> list[int]:
        """Return the row of each block (valid until the next `gather`), into which `num_tokens` will be written."""
        for block, count in num_tokens.items():
            self._written[block] = max(self._written[block], count)
        return [self._row_of[block] for block in num_tokens]

    def gather(self, blocks: Collection[int]) -> None:
        """Move blocks to consecutive rows, in any order. A failure in between loses what is in them.

        The rows are chosen so that the fewest tokens have to move.
        """
        block_in = sorted(range(len(self._row_of)), key=self._row_of.__getitem__)  # row -> block
        places = (block_in[first : first + len(blocks)] for first in range(len(block_in) - len(blocks) + 1))
        place = min(places, key=lambda place: sum(self._written[block] for block in set(blocks) ^ set(place)))
        arriving = [block for block in blocks if block not in place]
        leaving = [block for block in place if block not in blocks]
        for one, other in zip(arriving, leaving, strict=True):
            self._swap(one, other)

    def _swap(self, one: int, other: int) -> None:
        """Swap the rows of two blocks, and give back the memory that the shorter one does not need."""
        a, b = self._row_of[one], self._row_of[other]
        in_a, in_b = self._written[one], self._written[other]
        row, shorter, longer = (a, in_b, in_a) if in_b < in_a else (b, in_a, in_b)
        for mapping, buffer in zip(self._mappings, self.buffers, strict=True):
            kept = buffer[a, :, :in_a].copy()
            buffer[a, :, :in_b] = buffer[b, :, :in_b]
            buffer[b, :, :in_a] = kept
            _give_back_tokens(mapping, buffer, row, shorter, longer)
        self._row_of[one], self._row_of[other] = b, a


def untouched(shape: tuple[int, ...], kind: type[np.generic]) -> Array:
    """Return an array whose memory is taken page by page as it is written. Raises SettingsError."""
    (memory,) = _mappings([math.prod(shape) * np.dtype(kind).itemsize])
    return np.frombuffer(memory, kind).reshape(shape)


def _mappings(sizes: list[int]) -> list[mmap.mmap]:
    """Map memory without taking any of it yet. Raises SettingsError if the system refuses that many bytes."""
    try:
        return [_mapping(size) for size in sizes]
    except (OSError, OverflowError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise SettingsError(
            f"the system refuses the {sum(sizes):,} bytes that the KV cache may fill ({reason or error}); lower "
            "kv_cache_bytes or max_context, or raise the limit of this process (ulimit -v)",
            param="kv_cache_bytes",
        ) from error


def _mapping(size: int) -> mmap.mmap:
    """Map `size` bytes, private and without huge pages.

    numpy asks for huge pages, and the first token alone would take one per head and layer: 0.3 GB with 9B shapes.
    mmap's default is shared memory, whose pages are taken by reading them, too.
    """
    if not CAN_ADVISE:
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def _give_back_tokens(mapping: mmap.mmap, buffer: Array, row: int, start: int, stop: int) -> None:
    """Give back the memory of some tokens of one row of a buffer of (rows, n_kv, length, head_dim)."""
    _, num_heads, length, _ = buffer.shape
    token_bytes = buffer.strides[2]
    for head in range(row * num_heads, (row + 1) * num_heads):
        _give_back(mapping, (head * length + start) * token_bytes, (head * length + stop) * token_bytes)


def _give_back(memory: mmap.mmap, start: int, stop: int) -> None:
    """Give back the whole pages within a range, losing their content. A partial page at either end holds other data."""
    start, stop = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
    if CAN_ADVISE and start < stop:
        memory.madvise(mmap.MADV_DONTNEED, start, stop - start)
