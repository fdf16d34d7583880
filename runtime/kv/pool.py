"""A fixed pool of KV blocks and the block tables over it.

In: token counts. Out: block numbers. A block holds keys and values of `block_size` tokens in every layer. Several
holders may share a block: they are counted, and a holder that writes into it gets a copy first. The pool never grows;
when it is full, it asks for blocks that are only kept for later, and then refuses. Knows nothing about token ids or
what is in a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edge.runtime.errors import CacheError, CacheFullError
from edge.runtime.kv.memory import BlockMemory


class BlockPool:
    """Hands out numbered blocks and takes them back when their last holder releases them.

    max_tokens: the limit of all blocks together, for memory that is taken token by token. A block then holds a whole
    sequence, and there may be more blocks than the budget would fill.
    """

    def __init__(self, num_blocks: int, block_size: int, memory: BlockMemory, max_tokens: int | None = None) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.memory = memory
        self.max_tokens = num_blocks * block_size if max_tokens is None else max_tokens
        self.counts_tokens = max_tokens is not None
        # Gives back that many blocks and tokens which are only kept for later, or nothing if there are fewer.
        self.reclaim: Callable[[int, int], None] = lambda _blocks, _tokens: None
        self.generation = 0  # sequences of an earlier generation hold nothing
        self._start()

    def _start(self) -> None:
        self._filled = [0] * self.num_blocks  # block -> tokens for which it may take memory
        self._num_filled = 0
        self._free = list(range(self.num_blocks - 1, -1, -1))  # the lowest number is handed out first
        self._holders = [0] * self.num_blocks

    def start_over(self) -> None:
        """Take every block back, even if it is held, or a failure left it half written."""
        self.generation += 1
        self._start()
        for block in range(self.num_blocks):
            self.memory.give_back(block)

    @property
    def num_free(self) -> int:
        """How many blocks are free."""
        return len(self._free)

    @property
    def bytes(self) -> int:
        """The budget in bytes, which is never exceeded."""
        return self.max_tokens * self.memory.block_bytes // self.block_size

    @property
    def bytes_held(self) -> int:
        """Bytes in use."""
        return self.bytes - self.num_free_tokens * self.memory.block_bytes // self.block_size

    @property
    def num_free_tokens(self) -> int:
        """For how many tokens there is memory left."""
        return self.max_tokens - self._num_filled if self.counts_tokens else self.num_free * self.block_size

    def filled(self, block: int) -> int:
        """Return for how many tokens a block takes memory."""
        return self._filled[block] if self.counts_tokens else self.block_size

    def holders(self, block: int) -> int:
        """Return how many holders a block has."""
        return self._holders[block]

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks `num_tokens` tokens take."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int, tokens: int = 0) -> list[int]:
        """Take blocks, and memory for `tokens` tokens. Raises CacheFullError, taking nothing, if too few are free."""
        self.require(count, tokens)
        taken = self._free[len(self._free) - count :][::-1]
        self.memory.blank(taken)  # or a file of a block could contain another user's conversation
        del self._free[len(self._free) - count :]
        for block in taken:
            self._holders[block] = 1
        return taken

    def require(self, count: int, tokens: int) -> None:
        """Make sure that blocks and tokens are free, evicting what is only kept for later. Raises CacheFullError."""
        tokens = tokens if self.counts_tokens else 0
        missing, missing_tokens = max(count - len(self._free), 0), max(tokens - self.num_free_tokens, 0)
        if missing or missing_tokens:
            self.reclaim(missing, missing_tokens)
        if count > len(self._free):
            raise CacheFullError(
                f"the KV cache needs {count} more blocks of {self.block_size} tokens and {len(self._free)} of "
                f"{self.num_blocks} are free ({self.bytes:,} bytes in all); wait for other answers, use a shorter "
                "prompt, or load with a larger kv_cache_bytes"
            )
        if tokens > self.num_free_tokens:
            raise CacheFullError(
                f"the KV cache needs room for {tokens} more tokens and has it for {self.num_free_tokens} of "
                f"{self.max_tokens} ({self.bytes:,} bytes in all); wait for other answers, use a shorter prompt, or "
                "load with a larger kv_cache_bytes"
            )

    def fill(self, block: int, num_tokens: int) -> None:
        """Note that the first tokens of a block will be written; `require` has made room for them."""
        if self.counts_tokens and num_tokens > self._filled[block]:
            self._num_filled += num_tokens - self._filled[block]
            self._filled[block] = num_tokens

    def retain(self, block: int) -> None:
        """Add a holder to a block that has one already."""
        assert self._holders[block] > 0, "a free block cannot be shared"
        self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Release blocks; those without another holder are free again."""
        freed = []
        for block in blocks:
            assert self._holders[block] > 0, "a block is released twice"
            self._holders[block] -= 1
            if not self._holders[block]:
                freed.append(block)
                if self.counts_tokens:
                    self.memory.give_back(block)
                    self._num_filled -= self._filled[block]
                    self._filled[block] = 0
        self._free.extend(reversed(freed))

    def check_integrity(self, held: Iterable[int]) -> None:
        """Assert that every block has the holders in `held`, which lists a block once for each holder."""
        counts = [0] * self.num_blocks
        for block in held:
            counts[block] += 1
        assert counts == self._holders, "a block is held by more or by fewer than are counted"
        assert sorted(self._free) == [block for block, count in enumerate(counts) if not count], "a block is lost"
        assert sum(self._filled) == self._num_filled, "the count of tokens is wrong"
        assert self._num_filled <= self.max_tokens, "more tokens than memory"
        assert not any(self._filled[block] for block in self._free), "a free block counts tokens"


class CacheSequence:
    """The cached tokens of one conversation: a block table, and how many of its tokens are computed."""

    def __init__(self, pool: BlockPool, blocks: Iterable[int] = (), num_tokens: int = 0) -> None:
        """Take over `blocks`, which were allocated or retained for this sequence."""
        self._pool = pool
        self._generation = pool.generation
        self.block_table = list(blocks)
        self.num_tokens = num_tokens
        self._freed = False

    @property
    def freed(self) -> bool:
        """Whether it holds nothing and never will: it was freed, or the pool has started over."""
        return self._freed or self._generation != self._pool.generation

    def reserve(self, count: int) -> None:
        """Make room for `count` more tokens. They count only after `commit`, so an interrupted step changes nothing.

        If they would be written into a shared block, it is copied first. Raises CacheFullError, changing nothing.
        """
        self._check()
        pool, inside = self._pool, self.num_tokens % self._pool.block_size
        last = self.num_tokens // pool.block_size
        shared = bool(inside and count) and pool.holders(self.block_table[last]) > 1
        total = self.num_tokens + count
        missing = max(pool.blocks_for(total) - len(self.block_table), 0)
        kept = 0 if shared or not self.block_table else pool.filled(self.block_table[0])
        grows = pool.counts_tokens and total > kept
        if not missing and not shared and not grows:
            return
        fresh = pool.allocate(missing + shared, total - kept)
        if shared:
            own = fresh.pop()
            pool.memory.copy(self.block_table[last], own, inside)
            pool.release([self.block_table[last]])
            self.block_table[last] = own
        self.block_table += fresh
        if grows:
            pool.fill(self.block_table[0], total)

    def commit(self, count: int) -> None:
        """Count `count` reserved tokens as computed."""
        assert self.num_tokens + count <= len(self.block_table) * self._pool.block_size, "commit without reserve"
        self.num_tokens += count

    def trim(self, num_tokens: int) -> int:
        """Keep the first `num_tokens` tokens and give back the blocks after them; return how many tokens were cut."""
        self._check()
        assert 0 <= num_tokens <= self.num_tokens, "trim cannot add tokens"
        removed = self.num_tokens - num_tokens
        self.num_tokens = num_tokens
        keep = self._pool.blocks_for(num_tokens)
        dropped, self.block_table = self.block_table[keep:], self.block_table[:keep]
        self._pool.release(dropped)
        return removed

    def fork(self) -> CacheSequence:
        """Return a second sequence over the same blocks. What either adds from now on is its own."""
        self._check()
        self.trim(self.num_tokens)  # reserved room is not shared
        for block in self.block_table:
            self._pool.retain(block)
        return CacheSequence(self._pool, self.block_table, self.num_tokens)

    def free(self) -> None:
        """Give everything back for good. A second call changes nothing."""
        if not self.freed:
            self.trim(0)
        self._freed = True

    def _check(self) -> None:
        if self.freed:
            raise CacheError("this sequence has been freed and its blocks may be in use elsewhere; start a new one")
