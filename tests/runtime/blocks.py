"""Blocks of a pool as arrays that tests write into."""

from __future__ import annotations

from edge.runtime.arrays import Array
from edge.runtime.kv.memory import BlockMemory, ViewedMemory


def views(memory: BlockMemory, block: int, num_tokens: int) -> list[Array]:
    """A block's first tokens, in the memory itself."""
    assert isinstance(memory, ViewedMemory), f"numpy does not see into {type(memory).__name__}"
    return memory.views(block, num_tokens)
