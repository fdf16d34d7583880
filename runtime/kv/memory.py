"""The memory of a pool's blocks, and how blocks are read, written, copied and erased.

In: shapes. Out: buffers that an engine computes in. Knows nothing about who holds a block, or what its tokens are.

`BlockMemory` is all that the pool and prefix files ask for, so that blocks may also be where numpy does not reach: a
GPU's own memory is in `engines/openvino_memory.py`. What numpy does reach is `ViewedMemory`, whose blocks are views;
its memory is taken from the system only as tokens arrive (`pages.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from edge.runtime.arrays import Array
from edge.runtime.errors import CacheError, CacheFullError, SettingsError
from edge.runtime.kv.pages import CAN_ADVISE, RESERVES, MappedPages, Pages, open_pages

TAKEN_LATE = CAN_ADVISE or RESERVES  # memory is, and can be given back
Form = tuple[str, tuple[int, ...]]  # an array's type, as numpy writes it, and its shape

_CLOSED = "this model has been closed; load it again"
_STEP = 64  # tokens of a row that are taken at once: 5 MB with 9B shapes, in 160 calls


class BlockMemory(Protocol):
    """Where the keys and values of blocks are stored.

    A block is read and written as a list of arrays, one per buffer, with the same shapes for every block. Where an
    engine's layout cannot be cut, they are of the whole block, however few tokens are asked for.
    """

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers."""

    def forms(self, num_tokens: int) -> list[Form]:
        """Return types and shapes of the arrays that hold a block's first tokens."""

    def read(self, block: int, num_tokens: int) -> list[Array]:
        """Return a block's first tokens, valid until the next call; they may be the memory itself, so write nothing."""

    def write(self, block: int, num_tokens: int, arrays: Sequence[Array]) -> None:
        """Replace a block's first tokens by arrays of these `forms`."""

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first tokens of one block to another."""

    def blank(self, blocks: Sequence[int]) -> None:
        """Erase what blocks held, if `read` may show more than the requested tokens."""

    def give_back(self, block: int) -> None:
        """Return the memory of a freed block to the system, if memory is taken token by token."""


class ViewedMemory:
    """Blocks that numpy can see: `views` says where a block is, the rest follows from it."""

    def views(self, block: int, num_tokens: int) -> list[Array]:
        """Return writable views of a block's first tokens, one per buffer, with the same shapes for every block."""
        raise NotImplementedError

    def forms(self, num_tokens: int) -> list[Form]:
        return [(view.dtype.str, view.shape) for view in self.views(0, num_tokens)]

    def read(self, block: int, num_tokens: int) -> list[Array]:
        return self.views(block, num_tokens)

    def write(self, block: int, num_tokens: int, arrays: Sequence[Array]) -> None:
        for view, array in zip(self.views(block, num_tokens), arrays, strict=True):
            view[...] = array

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        self.write(target, num_tokens, self.views(source, num_tokens))


class WholeBlocks(ViewedMemory):
    """Blocks whose layout only the engine knows, so they are copied whole, in buffers of bytes that exist already."""

    def __init__(self, buffers: Sequence[Array]) -> None:
        """buffers: of (num_blocks, bytes of one block)."""
        self.buffers = list(buffers)
        self.block_bytes = sum(buffer.shape[1] for buffer in self.buffers)

    def views(self, block: int, num_tokens: int) -> list[Array]:  # noqa: ARG002  (a block cannot be cut)
        return [buffer[block] for buffer in self.buffers]

    def forms(self, num_tokens: int) -> list[Form]:  # noqa: ARG002
        return [(buffer.dtype.str, buffer.shape[1:]) for buffer in self.buffers]

    def blank(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            for buffer in self.buffers:
                buffer[block] = 0

    def give_back(self, block: int) -> None:
        """Do nothing: blocks are small, and soon used again."""


class PagedMemory(WholeBlocks):
    """Such buffers in memory that is taken block by block. Raises SettingsError.

    A block may be used after `blank` or `views` has named it.
    """

    def __init__(self, num_blocks: int, buffer_bytes: Sequence[int]) -> None:
        """buffer_bytes: what one block takes in each buffer."""
        self._pages = _open_all([num_blocks * size for size in buffer_bytes])
        super().__init__([np.frombuffer(p.buffer, np.uint8).reshape(num_blocks, -1) for p in self._pages])
        self._taken = [False] * num_blocks

    def views(self, block: int, num_tokens: int) -> list[Array]:
        self._take(block)
        return super().views(block, num_tokens)

    def blank(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._take(block)
        super().blank(blocks)

    def _take(self, block: int) -> None:
        if not self._taken[block]:
            for pages, buffer in zip(self._pages, self.buffers, strict=True):
                size = buffer.shape[1]
                _take(pages, block * size, (block + 1) * size)
            self._taken[block] = True


class NoMemory:
    """The memory of a closed engine: using its blocks raises CacheError."""

    block_bytes = 0

    def forms(self, num_tokens: int) -> list[Form]:
        raise CacheError(f"a block of {num_tokens} tokens: {_CLOSED}")

    def read(self, block: int, num_tokens: int) -> list[Array]:
        raise CacheError(f"block {block} of {num_tokens} tokens: {_CLOSED}")

    def write(self, block: int, num_tokens: int, arrays: Sequence[Array]) -> None:
        raise CacheError(f"block {block} of {num_tokens} tokens in {len(arrays)} buffers: {_CLOSED}")

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        raise CacheError(f"blocks {source} and {target} of {num_tokens} tokens: {_CLOSED}")

    def blank(self, blocks: Sequence[int]) -> None:
        raise CacheError(f"{len(blocks)} blocks: {_CLOSED}")

    def give_back(self, block: int) -> None:
        """Do nothing: there is no memory left."""


class SlotMemory(ViewedMemory):
    """Blocks that hold a whole sequence each, as rows of buffers of (num_slots, n_kv, length, head_dim).

    A batch is computed in neighbouring rows, so blocks change rows when a batch needs it, and their written part is
    copied. With 9B shapes that takes up to 0.2 ms per token, most of it for fresh pages; computing one takes 40 ms.
    Raises SettingsError.
    """

    def __init__(self, num_slots: int, num_buffers: int, shape: tuple[int, int, int], kind: type[np.generic]) -> None:
        self.block_bytes = num_buffers * math.prod(shape) * np.dtype(kind).itemsize
        self._pages = _open_all([num_slots * self.block_bytes // num_buffers] * num_buffers)
        self.buffers: list[Array] = [np.frombuffer(p.buffer, kind).reshape(num_slots, *shape) for p in self._pages]
        self._row_of = list(range(num_slots))  # block -> row
        self._taken = [0] * num_slots  # row -> its first tokens that are memory
        self._written = [0] * num_slots  # block -> its first tokens that may have been written since it was blank

    def close(self) -> None:
        """Give the memory back as soon as no view of it is left."""
        self.buffers.clear()
        self._pages.clear()

    def views(self, block: int, num_tokens: int) -> list[Array]:
        """Return views of shape (n_kv, num_tokens, head_dim), which are the block's until the next `gather`."""
        self._written[block] = max(self._written[block], num_tokens)
        self._take(self._row_of[block], num_tokens)
        return [buffer[self._row_of[block], :, :num_tokens] for buffer in self.buffers]

    def forms(self, num_tokens: int) -> list[Form]:
        return [(buffer.dtype.str, (buffer.shape[1], num_tokens, buffer.shape[3])) for buffer in self.buffers]

    def blank(self, blocks: Sequence[int]) -> None:
        """Count nothing as written. Views are cut, so they never show what an earlier sequence left."""
        for block in blocks:
            self._written[block] = 0

    def give_back(self, block: int) -> None:
        self._give_back(self._row_of[block], 0)
        self._written[block] = 0

    def rows(self, num_tokens: Mapping[int, int]) -> list[int]:
        """Return the row of each block (valid until the next `gather`), into which `num_tokens` will be written."""
        longest = max(num_tokens.values(), default=0)
        for block, count in num_tokens.items():
            self._written[block] = max(self._written[block], count)
            self._take(self._row_of[block], longest)  # attention may read as far in each
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
        self._take(a, in_b)
        self._take(b, in_a)
        for buffer in self.buffers:
            kept = buffer[a, :, :in_a].copy()
            buffer[a, :, :in_b] = buffer[b, :, :in_b]
            buffer[b, :, :in_a] = kept
        self._row_of[one], self._row_of[other] = b, a
        self._give_back(*((a, in_b) if in_b < in_a else (b, in_a)))

    def _take(self, row: int, num_tokens: int) -> None:
        """Make the first tokens of a row usable."""
        first, length = self._taken[row], self.buffers[0].shape[2]
        if num_tokens > first:
            last = min(-(-num_tokens // _STEP) * _STEP, length)
            for pages, start, stop in self._ranges(row, first, last):
                _take(pages, start, stop)
            self._taken[row] = last

    def _give_back(self, row: int, kept: int) -> None:
        """Give back the memory of a row after its first tokens."""
        for pages, start, stop in self._ranges(row, kept, self._taken[row]):
            pages.give_back(start, stop)
        self._taken[row] = min(self._taken[row], kept)

    def _ranges(self, row: int, first: int, last: int) -> Iterator[tuple[Pages, int, int]]:
        """Yield where some tokens of a row are: a range of bytes for each head, in each buffer."""
        for pages, buffer in zip(self._pages, self.buffers, strict=True):
            _, num_heads, length, _ = buffer.shape
            token_bytes = buffer.strides[2]
            for head in range(row * num_heads, (row + 1) * num_heads) if first < last else ():
                yield pages, (head * length + first) * token_bytes, (head * length + last) * token_bytes


def untouched(shape: tuple[int, ...], kind: type[np.generic]) -> Array:
    """Return an array whose memory is taken page by page as it is written. Raises SettingsError."""
    (pages,) = _open_all([math.prod(shape) * np.dtype(kind).itemsize], MappedPages)
    return np.frombuffer(pages.buffer, kind).reshape(shape)


def _open_all(sizes: list[int], open_one: Callable[[int], Pages] = open_pages) -> list[Pages]:
    """Return memory without taking any of it yet. Raises SettingsError if the system refuses that many bytes."""
    try:
        return [open_one(size) for size in sizes]
    except (OSError, OverflowError, MemoryError) as error:
        raise _refused(sum(sizes), error) from error


def _refused(size: int, error: Exception) -> SettingsError:
    reason = error.strerror if isinstance(error, OSError) else None
    return SettingsError(
        f"the system refuses the {size:,} bytes that the KV cache may fill ({reason or error}); lower "
        "kv_cache_bytes or max_context, or raise the limit of this process (ulimit -v)",
        param="kv_cache_bytes",
    )


def _take(pages: Pages, start: int, stop: int) -> None:
    """Raises CacheFullError."""
    try:
        pages.take(start, stop)
    except OSError as error:
        raise CacheFullError(
            f"the system has no memory left for the KV cache ({error.strerror}); end other programs, use a shorter "
            "prompt, or load with a smaller kv_cache_bytes"
        ) from error
