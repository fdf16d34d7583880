"""Blocks kept for later, found again by the cache keys of the tokens they hold.

In: cache keys, one per token (for text, its id), and the sequence that holds their keys and values; later, other keys.
Out: a sequence that already holds what the two have in common. Blocks form a tree: a full block may have followers, a
block that is not full has none. The keys themselves are compared, never hashes of them. When the pool is full, the
least recently used blocks go first; pinned ones stay. Knows nothing about engines or requests.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from edge.runtime.errors import CacheFullError
from edge.runtime.kv.pool import BlockPool, CacheSequence

logger = logging.getLogger(__name__)

Keys = list[int]


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """What the cache holds and has done so far."""

    lookups: int
    lookup_tokens: int  # of the prompts that were looked up
    hit_tokens: int  # those of them that did not need to be computed
    evicted_blocks: int
    tokens: int  # kept now
    blocks: int
    pinned_blocks: int

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that were in the cache."""
        return self.hit_tokens / self.lookup_tokens if self.lookup_tokens else 0.0


class _Node:
    """One block with the keys of its tokens."""

    __slots__ = ("block", "children", "keys", "parent", "pinned", "used")

    def __init__(self, keys: tuple[int, ...], block: int, parent: _Node | None) -> None:
        self.keys = keys
        self.block = block
        self.parent = parent
        self.children: dict[int, list[_Node]] = {}  # by their first key
        self.used = 0
        self.pinned = False

    def followers(self) -> Iterator[_Node]:
        for siblings in self.children.values():
            yield from siblings


class PrefixCache:
    """The tree over one pool. It holds each of its blocks once, and gives blocks back when the pool asks.

    An engine that cannot trim or fork keeps a whole sequence in each block: such a block is found only if the new keys
    begin with all of its own, and the new sequence takes it over. `stats` may be read from any thread.
    """

    def __init__(self, pool: BlockPool, *, can_trim: bool = True, can_fork: bool = True) -> None:
        self._pool = pool
        self._can_trim, self._can_fork = can_trim, can_fork
        self._root = _Node((), -1, None)
        self._clock = 0
        self._num_blocks = self._num_tokens = self._num_pinned = 0
        self._lookups = self._lookup_tokens = self._hit_tokens = self._evicted = 0
        pool.reclaim = self._reclaim

    @property
    def stats(self) -> PrefixStats:
        return PrefixStats(
            lookups=self._lookups,
            lookup_tokens=self._lookup_tokens,
            hit_tokens=self._hit_tokens,
            evicted_blocks=self._evicted,
            tokens=self._num_tokens,
            blocks=self._num_blocks,
            pinned_blocks=self._num_pinned,
        )

    @property
    def num_evictable(self) -> int:
        """How many blocks the pool would get back if it asked for all."""
        return self.evictable[0]

    @property
    def evictable(self) -> tuple[int, int]:
        """How many blocks the pool would get back if it asked for all, and for how many tokens they take memory."""
        stays: set[_Node | None] = set()
        blocks = tokens = 0
        for node in reversed(list(self._nodes())):  # followers before what they follow
            if node in stays or node.pinned or self._pool.holders(node.block) > 1:
                stays.add(node.parent)
            else:
                blocks += 1
                tokens += self._pool.filled(node.block)
        return blocks, tokens

    @property
    def num_pinned_tokens(self) -> int:
        """For how many tokens pinned blocks take memory."""
        return sum(self._pool.filled(node.block) for node in self._nodes() if node.pinned) if self._num_pinned else 0

    def room(self, keys: Keys, limit: int) -> tuple[int, int]:
        """Return how many full blocks a sequence of the first `limit` keys would share, and how many more could go."""
        full = [node for node, shared in self._path(keys, limit) if shared == self._pool.block_size]
        spare = sum(not node.pinned and self._pool.holders(node.block) == 1 for node in full)
        return len(full), self.num_evictable - spare

    def count_match(self, keys: Keys) -> int:
        """Return how many leading keys are kept. Changes nothing."""
        return sum(shared for _, shared in self._path(keys, len(keys)))

    def match(self, keys: Keys, limit: int) -> CacheSequence:
        """Return a sequence with as many of the first `limit` keys as are kept.

        It may append at once, into a block of its own: either a copy, or a block taken out of the tree, if the sequence
        continues all that the block held or there is no room for a copy.
        """
        path = self._path(keys, limit)
        self._clock += 1
        for node, _ in path:
            node.used = self._clock
            self._pool.retain(node.block)
        sequence = CacheSequence(self._pool, [node.block for node, _ in path], sum(shared for _, shared in path))
        if path and sequence.num_tokens % self._pool.block_size:
            self._make_writable(sequence, *path[-1])
        self.count_lookup(len(keys), sequence.num_tokens)
        return sequence

    def count_lookup(self, num_tokens: int, num_hits: int) -> None:
        """Count a prompt in the statistics, with the number of its tokens that did not need to be computed."""
        self._lookups += 1
        self._lookup_tokens += num_tokens
        self._hit_tokens += num_hits

    def insert(self, keys: Keys, sequence: CacheSequence, *, whole: bool) -> None:
        """Keep the blocks of a sequence whose tokens have the first `sequence.num_tokens` of `keys`.

        Only full blocks, which the sequence then shares, or with `whole` the last one too: the sequence must not append
        to it any more. Where a block of the same keys is already kept, it replaces the sequence's own.
        """
        size, table = self._pool.block_size, sequence.block_table
        node, self._clock = self._root, self._clock + 1
        for index in range(self._pool.blocks_for(sequence.num_tokens)):
            part = tuple(keys[index * size : min((index + 1) * size, sequence.num_tokens)])
            if len(part) < size and not whole:
                return
            found = next((child for child in node.children.get(part[0], ()) if child.keys[: len(part)] == part), None)
            if found is None:
                self._drop_shorter(node, part)
                siblings = node.children.setdefault(part[0], [])
                found = next((child for child in siblings if child.block == table[index]), None)
                if found is not None:  # pinned, with fewer tokens than this sequence has in the same block
                    self._num_tokens += len(part) - len(found.keys)
                    found.keys = part
                else:
                    found = _Node(part, table[index], node)
                    siblings.append(found)
                    self._num_blocks += 1
                    self._num_tokens += len(part)
                    self._pool.retain(found.block)
            elif found.block != table[index]:
                self._pool.retain(found.block)
                self._pool.release([table[index]])
                table[index] = found.block
            found.used = self._clock
            node = found

    def pin(self, keys: Keys) -> int:
        """Never evict the blocks that hold the first of these keys; return how many tokens that is."""
        path = self._path(keys, len(keys))
        for node, _ in path:
            self._num_pinned += not node.pinned
            node.pinned = True
        return sum(shared for _, shared in path)

    def unpin_all(self) -> None:
        """Let every block be evicted again."""
        nodes = list(self._nodes())
        for node in nodes:
            node.pinned = False
        self._num_pinned = 0
        for node in nodes:  # a pinned block stayed beside longer ones
            if node.parent is not None:
                self._drop_shorter(node.parent, node.keys)

    def clear(self) -> None:
        """Give back all blocks that are not pinned."""
        self._evict(self._pool.num_blocks)

    def start_over(self) -> None:
        """Forget everything, pinned or not: the pool has taken all blocks back."""
        self._root = _Node((), -1, None)
        self._num_blocks = self._num_tokens = self._num_pinned = 0

    def held_blocks(self) -> list[int]:
        """Blocks in the tree, for the pool's integrity check."""
        return [node.block for node in self._nodes()]

    def check_integrity(self) -> None:
        """Assert that the tree is sound: inner blocks are full, and no block's keys begin those of a sibling."""
        nodes = list(self._nodes())
        assert len(nodes) == self._num_blocks, "the count of blocks is wrong"
        assert sum(len(node.keys) for node in nodes) == self._num_tokens, "the count of tokens is wrong"
        assert sum(node.pinned for node in nodes) == self._num_pinned, "the count of pinned blocks is wrong"
        assert len({node.block for node in nodes}) == len(nodes), "a block is in the tree twice"
        for node in [self._root, *nodes]:
            if node is not self._root:
                assert 0 < len(node.keys) <= self._pool.block_size
                assert not node.children or len(node.keys) == self._pool.block_size, "a block has followers and room"
                assert node.pinned <= (node.parent is self._root or node.parent is None or node.parent.pinned)
            for first, siblings in node.children.items():
                assert siblings, "an empty list of followers"
                assert all(child.keys[0] == first and child.parent is node for child in siblings)
                pairs = [(a, b) for a in siblings for b in siblings if a is not b and not a.pinned]
                begins = [pair for pair in pairs if pair[1].keys[: len(pair[0].keys)] == pair[0].keys]
                assert not begins, "one block's keys begin another's"

    def _path(self, keys: Keys, limit: int) -> list[tuple[_Node, int]]:
        """Return the blocks that hold the first keys, each with the number of its tokens that are shared."""
        path: list[tuple[_Node, int]] = []
        node, at = self._root, 0
        while at < limit:
            wanted = tuple(keys[at : min(at + self._pool.block_size, limit)])
            best, shared = None, 0
            for child in node.children.get(wanted[0], ()):
                count = common_prefix(child.keys, wanted)
                if count > shared:
                    best, shared = child, count
            if best is None:
                break
            path.append((best, shared))
            at += shared
            if shared < self._pool.block_size:
                break
            node = best
        return path if self._is_usable(path) else []

    def _is_usable(self, path: list[tuple[_Node, int]]) -> bool:
        """Whether the engine can continue from the end of a path."""
        if not path or (self._can_trim and self._can_fork):
            return True
        node, shared = path[-1]
        whole = shared == len(node.keys) and not node.children
        alone = len(path) == 1 and self._is_spare(node)
        return (self._can_trim or whole) and (self._can_fork or (alone and whole))

    def _make_writable(self, sequence: CacheSequence, node: _Node, shared: int) -> None:
        """Let a sequence append after the first `shared` tokens of a kept block."""
        mine = not node.children and not node.pinned and self._pool.holders(node.block) == 2  # the tree's and ours
        if mine and shared == len(node.keys):
            self._remove(node)
            return
        try:
            sequence.reserve(1)
        except CacheFullError:  # no room for a copy
            if mine:
                self._remove(node)
            else:
                sequence.trim(sequence.num_tokens - shared)
            return
        sequence.trim(sequence.num_tokens)

    def _drop_shorter(self, parent: _Node, keys: tuple[int, ...]) -> None:
        """Remove followers whose keys begin these: a block with these keys holds all that they do."""
        for child in list(parent.children.get(keys[0], ())):
            if len(child.keys) < len(keys) and keys[: len(child.keys)] == child.keys and not child.pinned:
                self._remove(child)

    def _reclaim(self, count: int, tokens: int = 0) -> None:
        """Give back `count` blocks and `tokens` tokens, or nothing if that many cannot be freed: it would not help."""
        blocks_kept, tokens_kept = self.evictable
        if count <= blocks_kept and tokens <= tokens_kept:
            self._evict(count, tokens)

    def _evict(self, count: int, tokens: int = 0) -> None:
        """Give back up to `count` blocks and `tokens` tokens, least recently used first, from the leaves inwards."""
        before = self._evicted
        ends = [(node.used, id(node), node) for node in self._nodes() if self._is_spare(node)]
        heapq.heapify(ends)
        while ends and (count > 0 or tokens > 0):
            _, _, node = heapq.heappop(ends)
            parent = node.parent
            tokens -= self._pool.filled(node.block)
            self._remove(node)
            self._evicted += 1
            count -= 1
            if parent is not None and parent is not self._root and self._is_spare(parent):
                heapq.heappush(ends, (parent.used, id(parent), parent))
        if evicted := self._evicted - before:
            logger.debug("evicted %d blocks; %d with %d tokens are kept", evicted, self._num_blocks, self._num_tokens)

    def _is_spare(self, node: _Node) -> bool:
        return not node.children and not node.pinned and self._pool.holders(node.block) == 1

    def _remove(self, node: _Node) -> None:
        assert node.parent is not None
        siblings = node.parent.children[node.keys[0]]
        siblings.remove(node)
        if not siblings:
            del node.parent.children[node.keys[0]]
        self._num_blocks -= 1
        self._num_tokens -= len(node.keys)
        self._num_pinned -= node.pinned
        self._pool.release([node.block])

    def _nodes(self) -> Iterator[_Node]:
        stack = [self._root]
        while stack:
            for node in stack.pop().followers():
                stack.append(node)
                yield node


def common_prefix(a: Keys | tuple[int, ...], b: Keys | tuple[int, ...]) -> int:
    """Return how many leading keys, or ids, are equal."""
    if a[: len(b)] == b[: len(a)]:
        return min(len(a), len(b))
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
