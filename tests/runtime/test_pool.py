"""Block accounting: nothing is lost, who writes into a shared block gets a copy first, a full pool changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.runtime.errors import CacheError, CacheFullError
from edge.runtime.kv.memory import BlockMemory, PagedMemory, SlotMemory
from edge.runtime.kv.pool import BlockPool, CacheSequence
from tests.runtime.blocks import views

SHAPE = (3, 32, 2)  # heads, tokens, values
SIZES = (96, 160)  # bytes of a block in each of two buffers


def paged_pool(num_blocks: int, block_size: int = 32) -> BlockPool:
    return BlockPool(num_blocks, block_size, PagedMemory(num_blocks, SIZES))


def slot_pool(num_slots: int) -> BlockPool:
    return BlockPool(num_slots, SHAPE[1], SlotMemory(num_slots, 2, SHAPE, np.float32))


def fill(memory: BlockMemory, num_blocks: int, num_tokens: int) -> None:
    """Give every byte of every block a value; no two neighbours and no two blocks have the same."""
    random = np.random.default_rng(3)
    for block in range(num_blocks):
        for view in views(memory, block, num_tokens):
            view[...] = random.integers(0, 256, view.shape)


def contents(pool: BlockPool) -> list[list[np.ndarray]]:
    """All bytes of all blocks, copied."""
    return [[view.copy() for view in views(pool.memory, i, pool.block_size)] for i in range(pool.num_blocks)]


def grow(sequence: CacheSequence, count: int) -> None:
    sequence.reserve(count)
    sequence.commit(count)


def grown(pool: BlockPool, count: int) -> CacheSequence:
    sequence = CacheSequence(pool)
    grow(sequence, count)
    return sequence


def test_blocks_follow_tokens() -> None:
    pool = paged_pool(4)
    sequence = CacheSequence(pool)
    sequence.reserve(33)
    assert (sequence.block_table, sequence.num_tokens, pool.num_free) == ([0, 1], 0, 2)
    sequence.commit(33)
    sequence.reserve(31)
    assert sequence.block_table == [0, 1]
    sequence.commit(31)
    assert sequence.trim(32) == 32
    assert (sequence.block_table, pool.num_free) == ([0], 3)
    sequence.reserve(0)
    assert sequence.block_table == [0]


def test_an_interrupted_step_changes_nothing() -> None:
    pool = paged_pool(4)
    sequence = grown(pool, 10)
    sequence.reserve(60)  # and then no commit
    assert sequence.num_tokens == 10
    sequence.reserve(60)
    assert len(sequence.block_table) == 3
    sequence.trim(10)
    pool.check_integrity(sequence.block_table)
    assert pool.num_free == 3


def test_commit_needs_room() -> None:
    sequence = CacheSequence(paged_pool(4))
    sequence.reserve(32)
    with pytest.raises(AssertionError, match="commit without reserve"):
        sequence.commit(33)


def test_trim_cannot_add_tokens() -> None:
    sequence = grown(paged_pool(4), 5)
    with pytest.raises(AssertionError, match="cannot add"):
        sequence.trim(6)


def test_full_pool_says_what_is_missing() -> None:
    pool = paged_pool(3)
    other = grown(pool, 1)
    sequence = CacheSequence(pool)
    with pytest.raises(CacheFullError, match=r"3 more blocks of 32 tokens and 2 of 3 are free \(768 bytes in all\)"):
        sequence.reserve(65)
    assert (sequence.block_table, pool.num_free) == ([], 2)
    pool.check_integrity(other.block_table)


@pytest.mark.parametrize(
    ("pool", "block_bytes"), [(paged_pool(3), sum(SIZES)), (slot_pool(3), 2 * 4 * 3 * 32 * 2)], ids=["paged", "slots"]
)
def test_bytes_are_those_of_the_memory(pool: BlockPool, block_bytes: int) -> None:
    held = sum(view.nbytes for view in views(pool.memory, 0, pool.block_size))
    assert held == pool.memory.block_bytes == block_bytes
    assert (pool.bytes, pool.bytes_held) == (3 * block_bytes, 0)
    sequence = grown(pool, 33)
    assert pool.bytes_held == 2 * block_bytes
    fork = sequence.fork()
    assert pool.bytes_held == 2 * block_bytes  # a shared block counts once
    sequence.free()
    assert pool.bytes_held == 2 * block_bytes
    fork.free()
    assert pool.bytes_held == 0


def test_a_block_is_free_when_its_last_holder_lets_go() -> None:
    pool = paged_pool(2)
    [block] = pool.allocate(1)
    pool.retain(block)
    assert (pool.holders(block), pool.num_free) == (2, 1)
    pool.release([block])
    assert (pool.holders(block), pool.num_free) == (1, 1)
    pool.release([block])
    assert (pool.holders(block), pool.num_free) == (0, 2)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release([block])
    with pytest.raises(AssertionError, match="cannot be shared"):
        pool.retain(block)


@pytest.mark.parametrize(
    ("held", "message"),
    [([], "more or by fewer"), ([0, 1], "more or by fewer"), ([0, 0, 1], None), ([0, 1, 1], "more or by fewer")],
)
def test_integrity_counts_every_holder(held: list[int], message: str | None) -> None:
    pool = paged_pool(3)
    pool.allocate(2)
    pool.retain(0)
    if message is None:
        pool.check_integrity(held)
    else:
        with pytest.raises(AssertionError, match=message):
            pool.check_integrity(held)


def test_integrity_misses_no_lost_block() -> None:
    pool = paged_pool(3)
    pool._free.pop()
    with pytest.raises(AssertionError, match="a block is lost"):
        pool.check_integrity([])


def test_a_full_pool_asks_for_what_is_missing() -> None:
    pool = paged_pool(4)
    kept, asked = pool.allocate(3), []

    def reclaim(count: int, _tokens: int) -> None:
        asked.append(count)
        pool.release([kept.pop() for _ in range(min(count, len(kept)))])

    pool.reclaim = reclaim
    sequence = grown(pool, 32)
    assert asked == []  # one was free
    grow(sequence, 33)
    assert (asked, len(kept)) == ([2], 1)
    with pytest.raises(CacheFullError, match="2 more blocks of 32 tokens and 1 of 4 are free"):
        sequence.reserve(64)  # what was given back is not enough
    assert (asked, sequence.num_tokens, len(sequence.block_table)) == ([2, 2], 65, 3)
    pool.check_integrity(sequence.block_table)


def test_a_freed_sequence_refuses() -> None:
    pool = paged_pool(2)
    sequence, other = grown(pool, 3), grown(pool, 3)
    sequence.free()
    sequence.free()  # a second time changes nothing
    pool.check_integrity(other.block_table)
    calls: list[Callable[[], object]] = [lambda: sequence.reserve(1), lambda: sequence.trim(0), sequence.fork]
    for call in calls:
        with pytest.raises(CacheError, match="freed"):
            call()
    assert (sequence.num_tokens, sequence.block_table, pool.num_free) == (0, [], 1)


def test_fork_shares_what_is_computed_alone() -> None:
    pool = paged_pool(4)
    sequence = grown(pool, 40)
    sequence.reserve(50)
    fork = sequence.fork()
    assert fork.block_table == sequence.block_table == [0, 1]
    assert fork.block_table is not sequence.block_table
    assert [pool.holders(i) for i in range(4)] == [2, 2, 0, 0]
    sequence.free()
    assert (fork.num_tokens, fork.block_table, pool.num_free) == (40, [0, 1], 2)
    pool.check_integrity(fork.block_table)


@pytest.mark.parametrize("first", ["sequence", "fork"])
def test_who_writes_first_gets_the_copy(first: str) -> None:
    pool = paged_pool(4)
    sequence = grown(pool, 40)
    fork = sequence.fork()
    writer, other = (sequence, fork) if first == "sequence" else (fork, sequence)
    writer.reserve(1)
    assert (writer.block_table, other.block_table) == ([0, 2], [0, 1])
    assert [pool.holders(i) for i in range(4)] == [2, 1, 1, 0]
    other.reserve(1)  # nobody else holds its block any more
    assert other.block_table == [0, 1]
    pool.check_integrity(writer.block_table + other.block_table)


def test_behind_a_full_block_nothing_is_copied() -> None:
    pool = paged_pool(4)
    sequence = grown(pool, 64)
    fork = sequence.fork()
    fill(pool.memory, 4, 32)
    before = contents(pool)
    grow(fork, 1)
    assert (sequence.block_table, fork.block_table) == ([0, 1], [0, 1, 2])
    fork.trim(32)  # and with nothing to come, a shared block may stay where it is
    fork.trim(20)
    fork.reserve(0)
    assert fork.block_table == [0]
    for block, (old, new) in enumerate(zip(before, contents(pool), strict=True)):
        assert all(np.array_equal(x if block != 2 else 0 * x, y) for x, y in zip(old, new, strict=True))


def test_no_room_for_a_copy_changes_nothing() -> None:
    pool = paged_pool(2)
    sequence = grown(pool, 40)
    fork = sequence.fork()
    with pytest.raises(CacheFullError, match="1 more blocks"):
        fork.reserve(1)
    assert (fork.num_tokens, fork.block_table, sequence.block_table) == (40, [0, 1], [0, 1])
    pool.check_integrity(sequence.block_table + fork.block_table)
    sequence.free()
    fork.reserve(1)
    assert fork.block_table == [0, 1]


@given(st.integers(1, 31), st.integers(1, 40))
def test_a_copied_block_is_the_whole_block(num_tokens: int, count: int) -> None:
    check_copy_on_write(paged_pool(4), num_tokens, count, copied=32)


@given(st.integers(1, 31))
def test_a_copied_slot_is_its_tokens_alone(num_tokens: int) -> None:
    check_copy_on_write(slot_pool(3), num_tokens, count=1, copied=num_tokens)


def check_copy_on_write(pool: BlockPool, num_tokens: int, count: int, copied: int) -> None:
    """A fork that writes has the bytes of the first `copied` tokens; only fresh paged blocks become blank."""
    sequence = grown(pool, num_tokens)
    fork = sequence.fork()
    fill(pool.memory, pool.num_blocks, pool.block_size)
    expected = contents(pool)
    fork.reserve(count)
    [old], new = sequence.block_table, fork.block_table[0]
    assert old != new
    for block in fork.block_table[1:] if isinstance(pool.memory, PagedMemory) else []:
        for view in expected[block]:
            view[...] = 0
    for source, target in zip(expected[old], expected[new], strict=True):
        assert not np.array_equal(source, target)
        if copied == pool.block_size:
            target[...] = source
        else:
            target[:, :copied] = source[:, :copied]
    for block, found in enumerate(contents(pool)):
        assert all(np.array_equal(x, y) for x, y in zip(found, expected[block], strict=True)), block
    for view in views(pool.memory, new, pool.block_size):
        view[...] = 255 - view  # what the fork writes
    for view, kept in zip(views(pool.memory, old, pool.block_size), expected[old], strict=True):
        assert np.array_equal(view, kept)


def test_a_paged_block_is_handed_out_blank() -> None:
    """What it held may be another conversation, and a file of the new one shows the whole block."""
    pool = paged_pool(2)
    first = grown(pool, 3)
    fill(pool.memory, 2, 32)
    assert all(view.any() for view in views(pool.memory, first.block_table[0], 32))
    first.free()
    assert not any(view.any() for view in views(pool.memory, grown(pool, 1).block_table[0], 32))


def test_views_are_the_memory_itself() -> None:
    """An engine computes in these buffers; a copy would change nothing there."""
    paged, slots = PagedMemory(3, SIZES), SlotMemory(3, 2, SHAPE, np.float32)
    for view in paged.views(1, 5):
        view[...] = 7
    assert [[int(row.sum()) for row in buffer] for buffer in paged.buffers] == [[0, 7 * size, 0] for size in SIZES]
    for view in slots.views(2, 5):
        view[...] = 7
    assert [[float(row.sum()) for row in buffer] for buffer in slots.buffers] == [[0, 0, 7 * 3 * 5 * 2]] * 2
    slots.copy(2, 0, 4)
    assert [float(buffer[0].sum()) for buffer in slots.buffers] == [7 * 3 * 4 * 2] * 2


@given(st.lists(st.integers(0, SHAPE[1] - 4), min_size=1, max_size=7), st.data())
def test_neighbours_keep_their_bytes(lengths: list[int], data: st.DataObject) -> None:
    """What is in a block follows it, whichever batches come, and a batch writes into its own blocks alone."""
    memory, random = SlotMemory(len(lengths), 2, SHAPE, np.float32), np.random.default_rng(5)
    expected = [[random.random((SHAPE[0], length, SHAPE[2]), np.float32) for _ in range(2)] for length in lengths]
    for block, arrays in enumerate(expected):
        for view, array in zip(memory.views(block, lengths[block]), arrays, strict=True):
            view[...] = array
    for _ in range(4):
        batch = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, unique=True))
        memory.gather(batch)
        rows = memory.rows({block: expected[block][0].shape[1] + 1 for block in batch})
        assert sorted(rows) == list(range(min(rows), min(rows) + len(batch)))
        for block, row in zip(batch, rows, strict=True):
            new = random.random((SHAPE[0], 1, SHAPE[2]), np.float32)
            for buffer, array in zip(memory.buffers, expected[block], strict=True):
                buffer[row, :, array.shape[1]] = new[:, 0]
            expected[block] = [np.concatenate([array, new], axis=1) for array in expected[block]]
        for block, arrays in enumerate(expected):
            for view, array in zip(memory.views(block, arrays[0].shape[1]), arrays, strict=True):
                assert np.array_equal(view, array)


def test_the_fewest_tokens_move() -> None:
    """None for one block, nor for blocks that are neighbours already."""
    memory = SlotMemory(6, 2, SHAPE, np.float32)
    lengths = dict(enumerate((30, 9, 20, 3, 25, 0)))
    assert memory.rows(lengths) == [0, 1, 2, 3, 4, 5]
    for batch, rows in (
        ([4], [0, 1, 2, 3, 4, 5]),
        ([2, 1], [0, 1, 2, 3, 4, 5]),
        ([0, 2], [0, 2, 1, 3, 4, 5]),  # 29 tokens of 1 and 2, where 0 and 1 have 39
        ([2, 4], [0, 2, 5, 3, 4, 1]),  # 20 of 2, which goes where 5 is empty
    ):
        memory.gather(batch)
        assert memory.rows(lengths) == rows, batch


def test_a_block_that_moves_leaves_no_memory_behind() -> None:
    """Sixteen megabytes between two running sequences make place, and take sixteen afterwards."""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is told by /proc")

    def anonymous_bytes() -> int:
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024

    tokens = 1 << 20
    memory, before = SlotMemory(3, 2, (2, tokens, 1), np.float32), anonymous_bytes()
    for view in memory.views(1, tokens):
        view[...] = 7
    memory.gather([0, 2])
    assert memory.rows({1: tokens}) != [1]
    assert all((view == 7).all() for view in memory.views(1, tokens))
    assert anonymous_bytes() - before < 20e6


VERBS = ["grow", "reserve", "trim", "fork", "free"]


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(VERBS), st.integers(0, 90)), max_size=60))
def test_any_order_of_operations(operations: list[tuple[int, str, int]]) -> None:
    pool = paged_pool(12, block_size=16)
    sequences = [CacheSequence(pool) for _ in range(3)]
    for index, verb, amount in operations:
        sequence = sequences[index % len(sequences)]
        before = [(s.num_tokens, s.block_table.copy()) for s in sequences], pool.num_free
        if verb == "trim":
            kept = min(amount, sequence.num_tokens)
            assert sequence.trim(kept) == before[0][index % len(sequences)][0] - kept
            assert sequence.num_tokens == kept
        elif verb == "fork":
            sequences.append(sequence.fork())
        elif verb == "free":
            sequence.free()
            sequences[index % len(sequences)] = CacheSequence(pool)
        else:
            try:
                sequence.reserve(amount)
            except CacheFullError:
                assert ([(s.num_tokens, s.block_table) for s in sequences], pool.num_free) == before
            else:
                if amount:
                    own = sequence.block_table[sequence.num_tokens // 16 :]
                    assert all(pool.holders(block) == 1 for block in own)
                if verb == "grow":
                    sequence.commit(amount)
        pool.check_integrity(block for s in sequences for block in s.block_table)
        assert all(len(s.block_table) * 16 >= s.num_tokens for s in sequences)
