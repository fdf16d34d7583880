"""A fixed pool of KV blocks and the block tables over it.

In: token counts. Out: block numbers. A block holds keys and values of `block_size` tokens in every layer; the memory
itself belongs to the engine. The pool never grows. Knows nothing about engines, token ids or what is in a block.
"""

from __future__ import annotations

from edge.runtime.errors import ContextLengthError


class BlockPool:
    """Hands out numbered blocks and takes them back."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))  # the lowest number is handed out first

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks. Raises ContextLengthError, taking none, when fewer are free."""
        if count > len(self._free):
            raise ContextLengthError(
                f"the KV cache needs {count} more blocks of {self.block_size} tokens and {len(self._free)} of "
                f"{self.num_blocks} are free; use a shorter prompt or load with a larger max_context"
            )
        taken = self._free[len(self._free) - count :][::-1]
        del self._free[len(self._free) - count :]
        return taken

    def free(self, blocks: list[int]) -> None:
        """Give blocks back."""
        self._free.extend(reversed(blocks))

    def check_integrity(self, *sequences: Sequence) -> None:
        """Assert that every block is either free or held by exactly one of all living sequences."""
        held = [block for sequence in sequences for block in sequence.block_table]
        assert sorted(held + self._free) == list(range(self.num_blocks)), "a block is lost or held twice"


class Sequence:
    """The cached tokens of one conversation: a block table and how many tokens in it are computed."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.block_table: list[int] = []
        self.num_tokens = 0

    def reserve(self, count: int) -> None:
        """Make room for `count` more tokens; they count only after `commit`, so an interrupted step changes nothing."""
        needed = -(-(self.num_tokens + count) // self._pool.block_size) - len(self.block_table)
        if needed > 0:
            self.block_table += self._pool.allocate(needed)

    def commit(self, count: int) -> None:
        """Count `count` reserved tokens as computed."""
        assert self.num_tokens + count <= len(self.block_table) * self._pool.block_size, "commit without reserve"
        self.num_tokens += count

    def trim(self, num_tokens: int) -> int:
        """Keep the first `num_tokens` tokens, give back blocks beyond them; returns how many tokens went."""
        assert 0 <= num_tokens <= self.num_tokens, "trim cannot add tokens"
        removed = self.num_tokens - num_tokens
        self.num_tokens = num_tokens
        keep = -(-num_tokens // self._pool.block_size)
        dropped, self.block_table = self.block_table[keep:], self.block_table[:keep]
        self._pool.free(dropped)
        return removed
