"""Block accounting: nothing is lost, nothing is held twice, a full pool changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.runtime.errors import ContextLengthError
from edge.runtime.kv.pool import BlockPool, Sequence


def test_blocks_follow_tokens() -> None:
    pool = BlockPool(4, 32)
    sequence = Sequence(pool)
    sequence.reserve(33)
    assert (len(sequence.block_table), sequence.num_tokens, pool.num_free) == (2, 0, 2)
    sequence.commit(33)
    sequence.reserve(31)
    assert len(sequence.block_table) == 2
    sequence.commit(31)
    assert sequence.trim(32) == 32
    assert (len(sequence.block_table), pool.num_free) == (1, 3)


def test_an_interrupted_step_changes_nothing() -> None:
    pool = BlockPool(4, 32)
    sequence = Sequence(pool)
    sequence.reserve(10)
    sequence.commit(10)
    sequence.reserve(60)  # and then no commit
    assert sequence.num_tokens == 10
    sequence.reserve(60)
    assert len(sequence.block_table) == 3
    sequence.trim(10)
    pool.check_integrity(sequence)
    assert pool.num_free == 3


def test_full_pool_says_what_is_missing() -> None:
    pool = BlockPool(2, 32)
    sequence = Sequence(pool)
    with pytest.raises(ContextLengthError, match=r"3 more blocks of 32 tokens and 2 of 2 are free"):
        sequence.reserve(65)
    assert (sequence.block_table, pool.num_free) == ([], 2)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["grow", "reserve", "trim"]), st.integers(0, 90)), max_size=60
    )
)
def test_any_order_of_operations(operations: list[tuple[int, str, int]]) -> None:
    pool = BlockPool(12, 16)
    sequences = [Sequence(pool) for _ in range(3)]
    for index, verb, amount in operations:
        sequence = sequences[index]
        if verb == "trim":
            kept = min(amount, sequence.num_tokens)
            assert sequence.trim(kept) >= 0
            assert sequence.num_tokens == kept
        else:
            before = (sequence.num_tokens, pool.num_free)
            try:
                sequence.reserve(amount)
            except ContextLengthError:
                assert (sequence.num_tokens, pool.num_free) == before
            else:
                if verb == "grow":
                    sequence.commit(amount)
        pool.check_integrity(*sequences)
        assert all(len(s.block_table) * 16 >= s.num_tokens for s in sequences)
