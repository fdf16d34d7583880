"""Where the KV blocks of an OpenVINO engine are: arrays, the host's memory that a GPU reaches, or the GPU's own.

In: caches, a number of blocks and a device's remote context. Out: a `BlockMemory`, with the tensors that a request is
given. Knows nothing about who holds a block.

    arrays  numpy's, taken as tokens arrive. A GPU would copy them there, and perhaps back, at every inference
            (openvino#37662, #37843), so they are the CPU's alone.
    device  what the device allocates for itself, as openvino_genai has it on every GPU (kv_cache_manager.hpp). Blocks
            are copied there; to be read or written, they pass through the host.
    host    the host's memory that the device reaches (USM), which numpy sees, too. It is for integrated GPUs: a
            discrete one copies it, or reads it through the bus (can_use_usm_host in sync_infer_request.cpp).

A GPU's memory is taken at once. Neither kind of it has been verified on hardware: see docs/gpu.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Literal

import numpy as np
import openvino as ov

from edge.runtime.arrays import Array
from edge.runtime.engines.openvino_caches import CacheInput
from edge.runtime.errors import DeviceError, SettingsError, telling_line
from edge.runtime.kv.memory import BlockMemory, Form, PagedMemory, WholeBlocks

MemoryKind = Literal["arrays", "host", "device"]
Tensors = dict[str, Any]  # name of a cache -> ov.Tensor or ov.RemoteTensor, which have no types


def memory_kind(family: str, integrated: bool, caches: Sequence[CacheInput]) -> MemoryKind:
    """Return where blocks are on a kind of device. Raises DeviceError if its caches can be copied nowhere.

    integrated: whether the device has no memory of its own.
    """
    if family == "CPU":
        return "arrays"
    # copy_to and copy_from of a GPU's tensors refuse smaller ones (validate_and_check_shapes in remote_tensor.cpp).
    if all(cache.kind.bitwidth >= 8 for cache in caches):
        return "device"
    if integrated:
        return "host"
    raise DeviceError(
        "this GPU's KV cache has less than 8 bits a value, which cannot be copied; set kv_precision to u8"
    )


def make_memory(
    kind: MemoryKind,
    caches: Sequence[CacheInput],
    num_blocks: int,
    context: Any = None,  # ov.RemoteContext, which has no types
) -> tuple[BlockMemory, Tensors]:
    """Return the memory of blocks and the tensors over it. Raises SettingsError if there is not so much of it.

    context: of the device, for kinds other than "arrays".
    """
    if kind == "device":
        memory = DeviceMemory(context, caches, num_blocks)
        return memory, memory.tensors
    names = [cache.name for cache in caches]
    if kind == "host":
        held = HostMemory(context, caches, num_blocks)
        return held, dict(zip(names, held.tensors, strict=True))
    paged = PagedMemory(num_blocks, [cache.block_bytes for cache in caches])
    tensors = (
        ov.Tensor(buffer, ov.Shape([num_blocks, *cache.shape]), cache.kind)
        for cache, buffer in zip(caches, paged.buffers, strict=True)
    )
    return paged, dict(zip(names, tensors, strict=True))


class HostMemory(WholeBlocks):
    """Blocks in tensors of the host that a device reaches. Raises SettingsError."""

    def __init__(self, context: Any, caches: Sequence[CacheInput], num_blocks: int) -> None:  # ov.RemoteContext
        with _allocating(caches, num_blocks):
            self.tensors = [
                context.create_host_tensor(cache.kind, ov.Shape([num_blocks, *cache.shape])) for cache in caches
            ]
        super().__init__([np.asarray(t.data).reshape(-1).view(np.uint8).reshape(num_blocks, -1) for t in self.tensors])


class DeviceMemory:
    """Blocks in tensors that only the device reaches: a block is a part of each. Raises SettingsError.

    What a copy was refused for is a DeviceError.
    """

    def __init__(self, context: Any, caches: Sequence[CacheInput], num_blocks: int) -> None:  # ov.RemoteContext
        self.block_bytes = sum(cache.block_bytes for cache in caches)
        self._caches = caches
        with _allocating(caches, num_blocks):
            self.tensors: Tensors = {
                cache.name: context.create_tensor(cache.kind, ov.Shape([num_blocks, *cache.shape]), {})
                for cache in caches
            }

    def forms(self, num_tokens: int) -> list[Form]:  # noqa: ARG002  (a block cannot be cut)
        return [("|u1", (cache.block_bytes,)) for cache in self._caches]

    def read(self, block: int, num_tokens: int) -> list[Array]:  # noqa: ARG002
        found: list[Array] = [np.empty(cache.block_bytes, np.uint8) for cache in self._caches]
        with _copying():
            for cache, array in zip(self._caches, found, strict=True):
                self._blocks(cache, block, 1).copy_to(_tensor(array, cache, 1))
        return found

    def write(self, block: int, num_tokens: int, arrays: Sequence[Array]) -> None:  # noqa: ARG002
        with _copying():
            for cache, array in zip(self._caches, arrays, strict=True):
                self._blocks(cache, block, 1).copy_from(_tensor(np.ascontiguousarray(array), cache, 1))

    def copy(self, source: int, target: int, num_tokens: int) -> None:  # noqa: ARG002
        with _copying():
            for cache in self._caches:
                self._blocks(cache, source, 1).copy_to(self._blocks(cache, target, 1))

    def blank(self, blocks: Sequence[int]) -> None:
        """Erase neighbours by one copy: a prompt's blocks mostly are, and a copy has a price of its own."""
        with _copying():
            for first, count in _runs(blocks):
                for cache in self._caches:
                    zeros: Array = np.zeros(count * cache.block_bytes, np.uint8)
                    self._blocks(cache, first, count).copy_from(_tensor(zeros, cache, count))

    def give_back(self, block: int) -> None:
        """Do nothing: all of it was taken at once."""

    def _blocks(self, cache: CacheInput, first: int, count: int) -> Any:
        """Return the part of a tensor that is some blocks; of an ov.RemoteTensor, it is one, too."""
        tensor = self.tensors[cache.name]
        return type(tensor)(tensor, ov.Coordinate([first, 0, 0, 0]), ov.Coordinate([first + count, *cache.shape]))


def _tensor(array: Array, cache: CacheInput, count: int) -> Any:
    """Return a tensor over the bytes of a number of blocks."""
    return ov.Tensor(array, ov.Shape([count, *cache.shape]), cache.kind)


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield first block and length of each run of consecutive blocks."""
    for _, run in groupby(enumerate(sorted(blocks)), lambda pair: pair[1] - pair[0]):
        members = [block for _, block in run]
        yield members[0], len(members)


@contextmanager
def _allocating(caches: Sequence[CacheInput], num_blocks: int) -> Iterator[None]:
    size = num_blocks * sum(cache.block_bytes for cache in caches)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise SettingsError(
            f"the device refuses the {size:,} bytes of the KV cache ({telling_line(error, last=True)}); lower "
            "kv_cache_bytes or max_context",
            param="kv_cache_bytes",
        ) from error


@contextmanager
def _copying() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise DeviceError(
            f"the device does not copy blocks of its KV cache: {telling_line(error, last=True)}; load the model again"
        ) from error
