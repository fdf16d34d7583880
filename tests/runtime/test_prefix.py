"""The prefix cache: it finds what brute force finds, keeps what is pinned, gives back what was used least recently."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.runtime.errors import CacheFullError
from edge.runtime.kv.memory import PagedMemory, SlotMemory
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.kv.prefix import PrefixCache, common_prefix
from tests.runtime.blocks import views

Ids = list[int]


def paged_pool(num_blocks: int, block_size: int) -> BlockPool:
    """Blocks in which every token has its id and its position."""
    return BlockPool(num_blocks, block_size, PagedMemory(num_blocks, [8 * block_size] * 2))


def slot_pool(num_slots: int, max_context: int, max_tokens: int | None = None) -> BlockPool:
    """The same with a slot for each sequence."""
    memory = SlotMemory(num_slots, 2, (1, max_context, 1), np.int64)
    return BlockPool(num_slots, max_context, memory, max_tokens)


def cells(pool: BlockPool, block: int) -> list[np.ndarray]:
    """Ids and positions in a block, to be read and written."""
    return [view.view(np.int64).reshape(-1) for view in views(pool.memory, block, pool.block_size)]


def compute(pool: BlockPool, sequence: CacheSequence, ids: Ids) -> None:
    """What an engine does: run ids behind a sequence."""
    sequence.reserve(len(ids))
    for position, token_id in enumerate(ids, sequence.num_tokens):
        block, at = divmod(position, pool.block_size)
        for cell, value in zip(cells(pool, sequence.block_table[block]), (token_id, position), strict=True):
            cell[at] = value
    sequence.commit(len(ids))


def read_block(pool: BlockPool, block: int, begin: int, count: int) -> Ids:
    """Ids in a block that holds the tokens from position `begin` on."""
    ids, positions = cells(pool, block)
    assert positions[:count].tolist() == list(range(begin, begin + count))
    found: Ids = ids[:count].tolist()
    return found


def read(pool: BlockPool, sequence: CacheSequence) -> Ids:
    """Ids that a sequence holds."""
    found: Ids = []
    for begin, block in zip(range(0, sequence.num_tokens, pool.block_size), sequence.block_table, strict=False):
        found += read_block(pool, block, begin, min(pool.block_size, sequence.num_tokens - begin))
    return found


def computed(pool: BlockPool, ids: Ids) -> CacheSequence:
    sequence = CacheSequence(pool)
    compute(pool, sequence, ids)
    return sequence


def keep(prefixes: PrefixCache, pool: BlockPool, ids: Ids) -> list[int]:
    """Compute ids from scratch and leave all of them to the cache; returns their blocks."""
    sequence = computed(pool, ids)
    prefixes.insert(ids, sequence, whole=True)
    blocks = sequence.block_table.copy()
    sequence.free()
    return blocks


def check(prefixes: PrefixCache, pool: BlockPool, *sequences: CacheSequence) -> None:
    """Counts are right, and every block in the tree holds what the tree says."""
    pool.check_integrity([*prefixes.held_blocks(), *(block for s in sequences for block in s.block_table)])
    prefixes.check_integrity()
    stack = [(prefixes._root, 0)]
    while stack:
        node, begin = stack.pop()
        assert read_block(pool, node.block, begin, len(node.keys)) == list(node.keys)
        stack += [(child, begin + len(node.keys)) for child in node.followers()]


texts = st.lists(st.integers(0, 2), min_size=1, max_size=13)


def longest(kept: list[Ids], ids: Ids) -> int:
    """Brute force: how many leading ids some kept text shares."""
    return max((sum(1 for n in range(1, len(ids) + 1) if text[:n] == ids[:n]) for text in kept), default=0)


@given(texts, texts)
def test_common_prefix(a: Ids, b: Ids) -> None:
    expected = longest([a], b)
    assert common_prefix(a, b) == common_prefix(tuple(b), tuple(a)) == expected
    assert common_prefix(a, a[: len(a) // 2]) == len(a) // 2


@settings(deadline=None)
@given(st.integers(1, 4), st.lists(st.tuples(texts, st.booleans()), max_size=8), texts, st.integers(0, 13))
def test_match_is_the_longest_common_prefix(size: int, inserted: list[tuple[Ids, bool]], ids: Ids, limit: int) -> None:
    """Without a need for blocks nothing that was left to the cache goes missing."""
    pool = paged_pool(150, size)
    prefixes, kept = PrefixCache(pool), []
    for text, whole in inserted:
        sequence = computed(pool, text)
        prefixes.insert(text, sequence, whole=whole)
        assert read(pool, sequence) == text
        sequence.free()
        kept.append(text if whole else text[: len(text) // size * size])
        check(prefixes, pool)
    expected, limit = longest(kept, ids), min(limit, len(ids))
    assert prefixes.count_match(ids) == expected
    shared, others = prefixes.room(ids, limit)
    full = prefixes.match(ids, shared * size)
    assert (full.num_tokens, shared) == (shared * size, min(expected, limit) // size)
    assert prefixes.num_evictable == others
    full.free()
    sequence = prefixes.match(ids, limit)
    assert sequence.num_tokens == min(expected, limit)
    check(prefixes, pool, sequence)
    compute(pool, sequence, [9] * size)  # it may append at once, and nobody else sees it
    assert read(pool, sequence) == ids[: min(expected, limit)] + [9] * size
    check(prefixes, pool, sequence)


@settings(deadline=None)
@given(st.integers(1, 4), st.lists(texts, max_size=10))
def test_what_requests_leave_is_found(size: int, prompts: list[Ids]) -> None:
    """As the scheduler does it: what a request takes over it leaves again, so that nothing is ever lost."""
    pool = paged_pool(400, size)
    prefixes = PrefixCache(pool)
    for number, ids in enumerate(prompts):
        sequence = prefixes.match(ids, len(ids) - 1)
        assert sequence.num_tokens == min(longest(prompts[:number], ids), len(ids) - 1)
        compute(pool, sequence, ids[sequence.num_tokens :])
        prefixes.insert(ids, sequence, whole=False)
        prefixes.insert(ids, sequence, whole=True)
        assert read(pool, sequence) == ids
        sequence.free()
        check(prefixes, pool)
    # Every block that two texts share is there once.
    full = {tuple(ids[:n]) for ids in prompts for n in range(size, len(ids) + 1, size)}
    parts = {tuple(ids) for ids in prompts if len(ids) % size}
    parts -= {ids[:n] for ids in full | parts for n in range(len(ids) - len(ids) % -size, len(ids))}
    ends = {ids for ids in parts if not any(other != ids and other[: len(ids)] == ids for other in full | parts)}
    assert prefixes.stats.blocks == len(full) + len(ends)
    assert prefixes.stats.tokens == size * len(full) + sum(len(ids) % size for ids in ends)


def test_full_blocks_are_shared() -> None:
    pool = paged_pool(8, 4)
    prefixes = PrefixCache(pool)
    blocks = keep(prefixes, pool, [1, 2, 3, 4, 5, 6, 7, 8])
    one, other = prefixes.match([1, 2, 3, 4, 5, 6, 7, 8, 9], 8), prefixes.match([1, 2, 3, 4, 9, 9], 5)
    assert (one.block_table, other.block_table) == (blocks, blocks[:1])
    assert [pool.holders(block) for block in blocks] == [3, 2]
    assert pool.num_free == 6
    compute(pool, one, [9])
    compute(pool, other, [9])
    assert (read(pool, one), read(pool, other)) == ([1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 9])
    check(prefixes, pool, one, other)


def test_a_block_that_is_continued_is_taken_over() -> None:
    pool = paged_pool(8, 4)
    prefixes = PrefixCache(pool)
    blocks = keep(prefixes, pool, [1, 2, 3, 4, 5, 6])
    sequence = prefixes.match([1, 2, 3, 4, 5, 6, 7], 6)
    assert (sequence.num_tokens, sequence.block_table, pool.num_free) == (6, blocks, 6)
    assert prefixes.held_blocks() == blocks[:1]
    compute(pool, sequence, [7])
    assert sequence.block_table == blocks
    check(prefixes, pool, sequence)
    prefixes.insert([1, 2, 3, 4, 5, 6, 7], sequence, whole=True)
    assert sorted(prefixes.held_blocks()) == sorted(blocks)


def use(prefixes: PrefixCache, pool: BlockPool) -> list[CacheSequence]:
    """Another sequence holds the kept block too."""
    sequence = CacheSequence(pool, prefixes.held_blocks(), 3)
    pool.retain(sequence.block_table[0])
    return [sequence]


def pin(prefixes: PrefixCache, pool: BlockPool) -> list[CacheSequence]:
    assert prefixes.pin([1, 2, 3]) == 3
    return []


NOT_ALONE = [use, pin]


@pytest.mark.parametrize("hold", NOT_ALONE)
def test_a_block_that_others_need_is_copied(hold: Callable[[PrefixCache, BlockPool], list[CacheSequence]]) -> None:
    pool = paged_pool(8, 4)
    prefixes = PrefixCache(pool)
    blocks = keep(prefixes, pool, [1, 2, 3])
    others = hold(prefixes, pool)
    sequence = prefixes.match([1, 2, 3, 4], 3)
    assert (sequence.num_tokens, prefixes.held_blocks()) == (3, blocks)
    assert sequence.block_table != blocks
    compute(pool, sequence, [4])
    assert read(pool, sequence) == [1, 2, 3, 4]
    assert all(read(pool, other) == [1, 2, 3] for other in others)
    check(prefixes, pool, sequence, *others)


@pytest.mark.parametrize("ids", [[1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3]], ids=["full", "followed", "not full"])
def test_a_block_that_is_shared_in_part_is_copied(ids: Ids) -> None:
    pool = paged_pool(8, 4)
    prefixes = PrefixCache(pool)
    keep(prefixes, pool, ids)
    kept = prefixes.held_blocks()
    sequence = prefixes.match([1, 2, 7, 8], 3)
    assert sequence.num_tokens == 2
    assert not set(sequence.block_table) & set(kept)
    compute(pool, sequence, [7, 8])
    assert read(pool, sequence) == [1, 2, 7, 8]
    assert prefixes.held_blocks() == kept
    assert prefixes.count_match(ids) == len(ids)
    check(prefixes, pool, sequence)


def test_without_room_for_a_copy_a_block_is_taken_over() -> None:
    pool = paged_pool(2, 4)
    prefixes = PrefixCache(pool)
    blocks = keep(prefixes, pool, [1, 2, 3, 4, 5, 6, 7])
    sequence = prefixes.match([1, 2, 3, 4, 5, 9], 5)
    assert (sequence.num_tokens, sequence.block_table) == (5, blocks)
    compute(pool, sequence, [9])
    assert read(pool, sequence) == [1, 2, 3, 4, 5, 9]
    assert prefixes.held_blocks() == blocks[:1]
    check(prefixes, pool, sequence)


@pytest.mark.parametrize("hold", NOT_ALONE)
def test_without_room_for_a_copy_a_block_that_others_need_is_left(
    hold: Callable[[PrefixCache, BlockPool], list[CacheSequence]],
) -> None:
    pool = paged_pool(1, 4)
    prefixes = PrefixCache(pool)
    blocks = keep(prefixes, pool, [1, 2, 3])
    others = hold(prefixes, pool)
    sequence = prefixes.match([1, 2, 3, 4], 3)
    assert (sequence.num_tokens, sequence.block_table, prefixes.held_blocks()) == (0, [], blocks)
    assert (prefixes.stats.lookup_tokens, prefixes.stats.hit_tokens) == (4, 0)
    with pytest.raises(CacheFullError):
        compute(pool, sequence, [1])
    assert prefixes.held_blocks() == blocks
    check(prefixes, pool, sequence, *others)


def test_a_followed_block_without_room_for_a_copy_is_left() -> None:
    pool = paged_pool(2, 2)
    prefixes = PrefixCache(pool)
    blocks = keep(prefixes, pool, [1, 2, 3])
    assert prefixes.pin([1, 2, 3]) == 3
    sequence = prefixes.match([1, 9], 1)
    assert (sequence.num_tokens, sequence.block_table) == (0, [])
    assert sorted(prefixes.held_blocks()) == blocks
    check(prefixes, pool, sequence)


def test_one_slot() -> None:
    """Continued, cut or given up, but never copied."""
    pool = slot_pool(1, 8)
    prefixes = PrefixCache(pool)
    assert keep(prefixes, pool, [1, 2, 3]) == [0]
    conversation = prefixes.match([1, 2, 3, 4], 3)
    assert (conversation.num_tokens, conversation.block_table, prefixes.held_blocks()) == (3, [0], [])
    compute(pool, conversation, [4])
    prefixes.insert([1, 2, 3, 4], conversation, whole=True)
    conversation.free()
    shorter = prefixes.match([1, 2, 9], 2)
    assert (shorter.num_tokens, shorter.block_table, prefixes.held_blocks()) == (2, [0], [])
    compute(pool, shorter, [9])
    prefixes.insert([1, 2, 9], shorter, whole=True)
    shorter.free()
    other = prefixes.match([7], 0)
    assert (other.num_tokens, other.block_table, prefixes.held_blocks()) == (0, [], [0])
    compute(pool, other, [7])
    assert (other.block_table, prefixes.held_blocks(), prefixes.stats.evicted_blocks) == ([0], [], 1)
    assert read(pool, other) == [7]
    check(prefixes, pool, other)


def test_two_slots() -> None:
    pool = slot_pool(2, 8)
    prefixes = PrefixCache(pool)
    keep(prefixes, pool, [1, 2, 3])
    branch = prefixes.match([1, 2, 9], 2)  # room for a copy
    assert (branch.num_tokens, branch.block_table, prefixes.held_blocks()) == (2, [1], [0])
    compute(pool, branch, [9])
    check(prefixes, pool, branch)
    taken = prefixes.match([1, 2, 8], 2)  # none, since the other slot is in use
    assert (taken.num_tokens, taken.block_table, prefixes.held_blocks()) == (2, [0], [])
    compute(pool, taken, [8])
    assert (read(pool, branch), read(pool, taken)) == ([1, 2, 9], [1, 2, 8])
    check(prefixes, pool, branch, taken)
    for sequence, ids in ((branch, [1, 2, 9]), (taken, [1, 2, 8])):
        prefixes.insert(ids, sequence, whole=True)
        sequence.free()
    assert prefixes.pin([1, 2, 9]) == 3
    third = prefixes.match([1, 2, 9, 9], 3)  # a pinned slot is copied; the other one goes for it
    assert (third.num_tokens, third.block_table, prefixes.held_blocks()) == (3, [0], [1])
    check(prefixes, pool, third)


def test_a_slot_that_is_full() -> None:
    """Its sequence shares it while it runs; who shares a part of it has a copy."""
    pool = slot_pool(2, 4)
    prefixes = PrefixCache(pool)
    sequence = computed(pool, [1, 2, 3, 4])
    prefixes.insert([1, 2, 3, 4], sequence, whole=False)
    assert prefixes.held_blocks() == sequence.block_table == [0]
    other = prefixes.match([1, 2, 9], 2)
    assert other.block_table == [1]
    compute(pool, other, [9])
    assert (read(pool, sequence), read(pool, other)) == ([1, 2, 3, 4], [1, 2, 9])
    check(prefixes, pool, sequence, other)


def test_what_is_computed_twice_is_kept_once() -> None:
    pool = paged_pool(12, 2)
    prefixes = PrefixCache(pool)
    one, other = computed(pool, [1, 2, 3, 4, 5]), computed(pool, [1, 2, 3, 4, 6])
    prefixes.insert([1, 2, 3, 4, 5], one, whole=False)
    kept = one.block_table.copy()
    assert sorted(prefixes.held_blocks()) == sorted(kept[:2])
    assert pool.num_free == 6
    prefixes.insert([1, 2, 3, 4, 6], other, whole=False)
    assert other.block_table[:2] == kept[:2]
    assert [pool.holders(block) for block in kept] == [3, 3, 1]
    assert pool.num_free == 8
    compute(pool, other, [7])
    assert (read(pool, one), read(pool, other)) == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7])
    check(prefixes, pool, one, other)


def test_a_part_of_what_is_kept_is_not_kept_again() -> None:
    pool = paged_pool(12, 4)
    prefixes = PrefixCache(pool)
    [kept] = keep(prefixes, pool, [1, 2, 3])
    part = computed(pool, [1, 2])
    prefixes.insert([1, 2], part, whole=True)
    assert (part.block_table, prefixes.held_blocks(), pool.num_free) == ([kept], [kept], 11)
    assert read(pool, part) == [1, 2]
    compute(pool, part, [9])  # even one that goes on has a copy then
    assert part.block_table != [kept]
    check(prefixes, pool, part)


def test_ids_beyond_the_computed_ones_are_not_kept() -> None:
    """The last id of an answer is chosen and not computed."""
    pool = paged_pool(4, 2)
    prefixes = PrefixCache(pool)
    sequence = computed(pool, [1, 2, 3])
    sequence.reserve(4)
    prefixes.insert([1, 2, 3, 4, 5], sequence, whole=True)
    sequence.free()
    assert prefixes.count_match([1, 2, 3, 4, 5]) == 3
    check(prefixes, pool)


def test_a_longer_block_takes_the_place_of_a_shorter_one() -> None:
    pool = paged_pool(12, 4)
    prefixes = PrefixCache(pool)
    keep(prefixes, pool, [1])
    keep(prefixes, pool, [2, 2])
    longer = keep(prefixes, pool, [1, 5])
    assert longer[0] in prefixes.held_blocks()
    assert (prefixes.stats.blocks, prefixes.stats.tokens, pool.num_free) == (2, 4, 10)
    keep(prefixes, pool, [1, 6])
    keep(prefixes, pool, [1, 5, 3, 4, 5])
    assert [prefixes.count_match(ids) for ids in ([1, 5, 3, 4, 5], [1, 6], [2, 2])] == [5, 2, 2]
    assert prefixes.stats.blocks == 4
    check(prefixes, pool)


def test_a_pinned_block_stays_until_a_longer_one_may_replace_it() -> None:
    pool = paged_pool(12, 4)
    prefixes = PrefixCache(pool)
    [first] = keep(prefixes, pool, [1])
    assert prefixes.pin([1]) == 1
    [second] = keep(prefixes, pool, [1, 2])
    assert prefixes.pin([1, 2]) == 2
    [third] = keep(prefixes, pool, [1, 2, 3])
    assert prefixes.held_blocks() == [first, second, third]
    check(prefixes, pool)
    prefixes.unpin_all()
    assert prefixes.held_blocks() == [third]
    check(prefixes, pool)


def test_a_pinned_block_grows_with_a_sequence_that_shares_it() -> None:
    """One of two forks leaves less than the other; a block has one place in the tree."""
    pool = paged_pool(12, 4)
    prefixes = PrefixCache(pool)
    sequence = computed(pool, [1, 2, 3])
    fork = sequence.fork()
    fork.trim(2)
    prefixes.insert([1, 2], fork, whole=True)
    fork.free()
    assert prefixes.pin([1, 2]) == 2
    keep(prefixes, pool, [1, 2, 7])
    prefixes.insert([1, 2, 3], sequence, whole=True)
    check(prefixes, pool, sequence)
    sequence.free()
    prefixes.clear()
    assert (prefixes.count_match([1, 2, 3]), prefixes.stats.blocks) == (3, 1)
    check(prefixes, pool)


def test_a_block_with_a_follower_in_use_is_not_promised() -> None:
    """A sequence may hold a kept block and have its own copy of what comes before."""
    pool = paged_pool(6, 2)
    prefixes = PrefixCache(pool)
    keep(prefixes, pool, [1, 2])
    sequence = computed(pool, [1, 2, 3, 4])
    fork = sequence.fork()
    prefixes.insert([1, 2, 3, 4], sequence, whole=True)
    sequence.free()
    check(prefixes, pool, fork)
    assert (prefixes.stats.blocks, pool.num_free, prefixes.num_evictable) == (2, 3, 0)
    with pytest.raises(CacheFullError):
        pool.allocate(4)
    fork.free()
    assert prefixes.num_evictable == 2


def test_a_block_with_a_follower_in_use_stays_where_it_is() -> None:
    """Nor is it taken over when there is no room for a copy."""
    pool = paged_pool(3, 2)
    prefixes = PrefixCache(pool)
    keep(prefixes, pool, [1, 2])
    sequence = computed(pool, [1, 2, 3, 4])
    fork = sequence.fork()
    prefixes.insert([1, 2, 3, 4], sequence, whole=True)
    sequence.free()
    assert pool.num_free == 0
    other = prefixes.match([1, 9], 1)
    assert other.num_tokens == 0
    assert prefixes.count_match([1, 2, 3, 4]) == 4
    check(prefixes, pool, fork, other)


def test_the_least_recently_used_goes_first() -> None:
    pool = paged_pool(6, 2)
    prefixes = PrefixCache(pool)
    texts = {name: [name, 1, name, 1] for name in (10, 20, 30)}
    for ids in texts.values():
        keep(prefixes, pool, ids)
    prefixes.count_match(texts[20])  # asking is no use
    prefixes.match([*texts[10], 9], 4).free()
    found = []
    for _ in range(6):
        pool.release(pool.allocate(pool.num_free + 1))
        found.append([prefixes.count_match(ids) for ids in texts.values()])
        check(prefixes, pool)
    # Ends first, then what they followed: 20 and 30 were used before 10 was.
    assert found == [[4, 2, 4], [4, 0, 4], [4, 0, 2], [4, 0, 0], [2, 0, 0], [0, 0, 0]]
    assert prefixes.stats.evicted_blocks == 6


def test_evictions_are_logged_in_numbers_and_nothing_else_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "edge")
    pool = paged_pool(6, 2)
    prefixes = PrefixCache(pool)
    for ids in ([71, 72, 73], [81, 82, 83, 84]):
        keep(prefixes, pool, ids)
    prefixes.match([71, 72, 9], 3).free()
    assert caplog.messages == []
    pool.release(pool.allocate(pool.num_free + 2))
    prefixes.clear()
    prefixes.clear()  # of nothing
    assert caplog.messages == [
        "evicted 2 blocks; 2 with 4 tokens are kept",
        "evicted 2 blocks; 0 with 0 tokens are kept",
    ]


def test_a_use_of_a_part_spares_that_part() -> None:
    pool = paged_pool(4, 2)
    prefixes = PrefixCache(pool)
    keep(prefixes, pool, [1, 1, 2, 2])
    keep(prefixes, pool, [3, 3, 4, 4])
    prefixes.match([1, 1, 9], 2).free()
    pool.release(pool.allocate(1))
    assert (prefixes.count_match([1, 1, 2, 2]), prefixes.count_match([3, 3, 4, 4])) == (2, 4)
    pool.release(pool.allocate(3))
    assert (prefixes.count_match([1, 1, 2, 2]), prefixes.count_match([3, 3, 4, 4])) == (2, 0)
    check(prefixes, pool)


def test_a_request_that_cannot_be_met_costs_nothing() -> None:
    pool = paged_pool(6, 2)
    prefixes = PrefixCache(pool)
    keep(prefixes, pool, [1, 2, 3, 4])
    sequence = computed(pool, [5, 6, 7])
    with pytest.raises(CacheFullError, match="5 more blocks of 2 tokens and 2 of 6 are free"):
        sequence.reserve(11)
    assert (prefixes.count_match([1, 2, 3, 4]), prefixes.stats.evicted_blocks) == (4, 0)
    sequence.reserve(9)
    assert prefixes.stats.evicted_blocks == 2
    check(prefixes, pool, sequence)


def test_blocks_in_use_and_pinned_ones_stay() -> None:
    pool = paged_pool(6, 2)
    prefixes = PrefixCache(pool)
    keep(prefixes, pool, [1, 1, 2, 2])
    keep(prefixes, pool, [3, 3, 4, 4])
    keep(prefixes, pool, [5, 5, 6, 6])
    assert prefixes.num_evictable == 6
    assert prefixes.pin([1, 1, 2]) == 3  # a block is pinned or not
    user = prefixes.match([3, 3, 9], 2)
    assert prefixes.num_evictable == 3
    assert prefixes.stats.pinned_blocks == 2
    with pytest.raises(CacheFullError, match="4 more blocks of 2 tokens"):
        pool.allocate(4)
    blocks = pool.allocate(3)
    assert [prefixes.count_match(ids) for ids in ([1, 1, 2, 2], [3, 3, 4, 4], [5, 5, 6, 6])] == [4, 2, 0]
    pool.release(blocks)
    user.free()
    assert prefixes.num_evictable == 1
    prefixes.clear()
    assert [prefixes.count_match(ids) for ids in ([1, 1, 2, 2], [3, 3, 4, 4])] == [4, 0]
    check(prefixes, pool)
    prefixes.unpin_all()
    assert (prefixes.num_evictable, prefixes.stats.pinned_blocks) == (2, 0)
    prefixes.clear()
    assert (prefixes.held_blocks(), pool.num_free) == ([], 6)
    check(prefixes, pool)


def test_only_what_is_kept_can_be_pinned() -> None:
    pool = paged_pool(4, 2)
    prefixes = PrefixCache(pool)
    keep(prefixes, pool, [1, 2, 3])
    assert prefixes.pin([1, 2, 9, 9]) == 2
    assert prefixes.pin([9]) == 0
    assert prefixes.stats.pinned_blocks == 1


def test_statistics() -> None:
    pool = paged_pool(4, 2)
    prefixes = PrefixCache(pool)
    assert prefixes.stats.hit_rate == 0.0
    first = prefixes.match([1, 2, 3], 2)
    compute(pool, first, [1, 2, 3])
    prefixes.insert([1, 2, 3], first, whole=True)
    first.free()
    prefixes.match([1, 2, 3, 4], 3).free()  # takes the end over and does not leave it
    prefixes.match([1, 9], 1).free()
    prefixes.count_lookup(10, 5)
    stats = prefixes.stats
    assert (stats.lookups, stats.lookup_tokens, stats.hit_tokens) == (4, 3 + 4 + 2 + 10, 3 + 1 + 5)
    assert stats.hit_rate == 9 / 19
    assert (stats.tokens, stats.blocks, stats.pinned_blocks, stats.evicted_blocks) == (2, 1, 0, 0)
    prefixes.clear()
    assert (prefixes.stats.tokens, prefixes.stats.blocks, prefixes.stats.evicted_blocks) == (0, 0, 1)


def damaged(prefixes: PrefixCache) -> dict[str, Any]:
    """The nodes of a tree of [1, 2, 3, 4], [1, 2, 5] and [6], by their ids."""
    return {"".join(map(str, node.keys)): node for node in prefixes._nodes()}


def lose(prefixes: PrefixCache) -> None:
    prefixes._root.children.pop(6)


def repeat(prefixes: PrefixCache) -> None:
    damaged(prefixes)["6"].block = damaged(prefixes)["5"].block


def shorten(prefixes: PrefixCache) -> None:
    damaged(prefixes)["12"].keys = (1,)
    prefixes._num_tokens -= 1


def lengthen(prefixes: PrefixCache) -> None:
    nodes = damaged(prefixes)
    prefixes._num_tokens += 3 - len(nodes["5"].keys)
    nodes["5"].keys = (5, 6, 7)


def pin_alone(prefixes: PrefixCache) -> None:
    damaged(prefixes)["5"].pinned = True
    prefixes._num_pinned += 1


def miscount_tokens(prefixes: PrefixCache) -> None:
    damaged(prefixes)["12"].keys = (1,)


def miscount_pinned(prefixes: PrefixCache) -> None:
    damaged(prefixes)["12"].pinned = True


def leave_empty_list(prefixes: PrefixCache) -> None:
    prefixes._root.children[8] = []


def misplace(prefixes: PrefixCache) -> None:
    prefixes._root.children[8] = prefixes._root.children.pop(6)


def adopt(prefixes: PrefixCache) -> None:
    damaged(prefixes)["5"].parent = prefixes._root


def begin_another(prefixes: PrefixCache) -> None:
    nodes = damaged(prefixes)
    nodes["5"].keys = (3,)
    nodes["12"].children[3].append(nodes["12"].children.pop(5)[0])


DAMAGES = [
    (lose, "the count of blocks is wrong"),
    (repeat, "in the tree twice"),
    (miscount_tokens, "the count of tokens is wrong"),
    (miscount_pinned, "the count of pinned blocks is wrong"),
    (shorten, "followers and room"),
    (lengthen, None),
    (pin_alone, None),
    (leave_empty_list, "an empty list"),
    (misplace, None),
    (adopt, None),
    (begin_another, "begin another's"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_integrity_misses_no_damage(damage: Callable[[PrefixCache], None], message: str | None) -> None:
    pool = paged_pool(8, 2)
    prefixes = PrefixCache(pool)
    for ids in ([1, 2, 3, 4], [1, 2, 5], [6]):
        keep(prefixes, pool, ids)
    check(prefixes, pool)
    damage(prefixes)
    with pytest.raises(AssertionError, match=message):
        prefixes.check_integrity()
