"""The bytes behind a pool's blocks, and how a part of a block is read, copied and written.

In: shapes. Out: buffers that an engine computes in, and views of single blocks in them. Knows nothing about who holds
a block or what its tokens are.

Memory is mapped and left untouched, so that it is taken page by page as tokens arrive.
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
    """Where the keys and values of blocks are."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers."""

    def views(self, block: int, num_tokens: int) -> list[Array]:
        """Writable views of a block's first tokens, one a buffer; the same shapes for every block."""

    def blank(self, block: int) -> None:
        """Forget what a block held, where `views` may show more than the tokens that were asked for."""

    def give_back(self, block: int) -> None:
        """A block is free: where memory is taken token by token, let the system have it."""


def copy_block(memory: BlockMemory, source: int, target: int, num_tokens: int) -> None:
    """Copy the first tokens of one block to another."""
    for old, new in zip(memory.views(source, num_tokens), memory.views(target, num_tokens), strict=True):
        new[...] = old


class PagedMemory:
    """Blocks whose inside is the engine's own affair: they are copied whole. Raises SettingsError."""

    def __init__(self, num_blocks: int, buffer_bytes: Sequence[int]) -> None:
        """`buffer_bytes`: what one block takes in each buffer."""
        self.block_bytes = sum(buffer_bytes)
        mappings = _mappings([num_blocks * size for size in buffer_bytes])
        self.buffers: list[Array] = [np.frombuffer(m, np.uint8).reshape(num_blocks, -1) for m in mappings]

    def views(self, block: int, num_tokens: int) -> list[Array]:  # noqa: ARG002  (a block cannot be cut)
        return [buffer[block] for buffer in self.buffers]

    def blank(self, block: int) -> None:
        for buffer in self.buffers:
            buffer[block] = 0

    def give_back(self, block: int) -> None:
        """Blocks are small, and soon another's."""


class NoMemory:
    """What a closed engine leaves: whoever still wants blocks of it gets a CacheError."""

    block_bytes = 0

    def views(self, block: int, num_tokens: int) -> list[Array]:
        raise CacheError(f"block {block} of {num_tokens} tokens: this model has been closed; load it again")

    def blank(self, block: int) -> None:
        raise CacheError(f"block {block}: this model has been closed; load it again")

    def give_back(self, block: int) -> None:
        """There is nothing to give."""


class SlotMemory:
    """Blocks that hold a whole sequence each, as rows of buffers of (num_slots, n_kv, length, head_dim).

    A batch is computed in neighbouring rows, so blocks change rows when a batch needs it: what is written of them is
    copied. At 9B shapes that takes up to 0.2 ms a token, most of it for fresh pages, where computing one takes 40.
    Raises SettingsError.
    """

    def __init__(self, num_slots: int, num_buffers: int, shape: tuple[int, int, int], kind: type[np.generic]) -> None:
        self.block_bytes = num_buffers * math.prod(shape) * np.dtype(kind).itemsize
        self._mappings = _mappings([num_slots * self.block_bytes // num_buffers] * num_buffers)
        self.buffers: list[Array] = [np.frombuffer(m, kind).reshape(num_slots, *shape) for m in self._mappings]
        self._row_of = list(range(num_slots))  # block -> row
        self._written = [0] * num_slots  # block -> its first tokens that may have been written since it was blank

    def close(self) -> None:
        """Give the memory back, as soon as nobody has a view of it any more."""
        self.buffers.clear()
        self._mappings.clear()

    def views(self, block: int, num_tokens: int) -> list[Array]:
        """Of shape (n_kv, num_tokens, head_dim), and the block's until the next `gather`."""
        self._written[block] = max(self._written[block], num_tokens)
        return [buffer[self._row_of[block], :, :num_tokens] for buffer in self.buffers]

    def blank(self, block: int) -> None:
        """Views are cut: they never show what an earlier sequence left. It need not be kept, though."""
        self._written[block] = 0

    def give_back(self, block: int) -> None:
        for mapping, buffer in zip(self._mappings, self.buffers, strict=True):
            _give_back_tokens(mapping, buffer, self._row_of[block], 0, self._written[block])
        self._written[block] = 0

    def rows(self, num_tokens: Mapping[int, int]) -> list[int]:
        """The row of each block, where so many of its tokens will be written; theirs until the next `gather`."""
        for block, count in num_tokens.items():
            self._written[block] = max(self._written[block], count)
        return [self._row_of[block] for block in num_tokens]

    def gather(self, blocks: Collection[int]) -> None:
        """Let blocks have consecutive rows, in any order. A failure on the way loses what is in them.

        Of all places for them, that one is taken where the fewest tokens have to move.
        """
        block_in = sorted(range(len(self._row_of)), key=self._row_of.__getitem__)  # row -> block
        places = (block_in[first : first + len(blocks)] for first in range(len(block_in) - len(blocks) + 1))
        place = min(places, key=lambda place: sum(self._written[block] for block in set(blocks) ^ set(place)))
        arriving = [block for block in blocks if block not in place]
        leaving = [block for block in place if block not in blocks]
        for one, other in zip(arriving, leaving, strict=True):
            self._swap(one, other)

    def _swap(self, one: int, other: int) -> None:
        """Exchange the rows of two blocks, and give back the memory that the shorter one does not need."""
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
    """An array whose memory comes page by page as it is written. Raises SettingsError."""
    (memory,) = _mappings([math.prod(shape) * np.dtype(kind).itemsize])
    return np.frombuffer(memory, kind).reshape(shape)


def _mappings(sizes: list[int]) -> list[mmap.mmap]:
    """Memory of our own, none of it taken yet. Raises SettingsError where the system refuses so many bytes."""
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
    """So many bytes.

    numpy asks for huge pages, of which the first token alone would take one a head and layer: 0.3 GB at 9B shapes.
    What mmap maps by default is shared, which is taken when it is read as well.
    """
    if not CAN_ADVISE:
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def _give_back_tokens(mapping: mmap.mmap, buffer: Array, row: int, start: int, stop: int) -> None:
    """Let go of some tokens of one row of a buffer of (rows, n_kv, length, head_dim)."""
    _, num_heads, length, _ = buffer.shape
    token_bytes = buffer.strides[2]
    for head in range(row * num_heads, (row + 1) * num_heads):
        _give_back(mapping, (head * length + start) * token_bytes, (head * length + stop) * token_bytes)


def _give_back(memory: mmap.mmap, start: int, stop: int) -> None:
    """Let go of the whole pages among some bytes, whose content is lost; a page at either end holds others' too."""
    start, stop = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
    if CAN_ADVISE and start < stop:
        memory.madvise(mmap.MADV_DONTNEED, start, stop - start)
