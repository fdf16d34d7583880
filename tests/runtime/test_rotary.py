"""Positions, as rotary frequencies read them, and the tables that onnxruntime takes cos and sin from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge.runtime.engines.onnx_turns import Turns
from edge.runtime.rotary import cos_and_sin, one_row, per_frequency, position_rows
from edge.runtime.spec import ModelSpec

ONE = ModelSpec("chatglm", 2, 32, 64, 2, 1, 32, 16, 1e4, 1e-5, 256, 64, False, False, False)
THREE = replace(ONE, rope_sections=(2, 3, 3))
POSITIONS = np.array([[5, 5], [6, 7], [8, 9]])  # time, row and column of two tokens


def test_each_frequency_turns_by_the_position_of_its_section() -> None:
    assert (position_rows(ONE), position_rows(THREE)) == (1, 3)
    found = per_frequency(POSITIONS, THREE)
    assert found.dtype == np.float32
    assert found.tolist() == [[5, 5, 6, 6, 6, 8, 8, 8], [5, 5, 7, 7, 7, 9, 9, 9]]
    assert per_frequency(np.array([4, 2]), THREE).tolist() == [[4] * 8, [2] * 8]


def test_cos_and_sin_are_those_of_float32_angles() -> None:
    """Bit by bit those of a graph that multiplies a float32 position by a float32 frequency."""
    angles = np.float32(1000) * ONE.inverse_frequencies()
    for table, expected in zip(cos_and_sin(np.array([1000]), ONE), (np.cos(angles), np.sin(angles)), strict=True):
        assert table.dtype == np.float32
        assert table[0].tolist() == expected.tolist()


def test_positions_of_text_are_one_row() -> None:
    assert one_row(POSITIONS) is None
    same = one_row(np.array([[3, 4]] * 3))
    assert same is not None
    assert same.tolist() == [3, 4]


@pytest.mark.parametrize("spec", [ONE, THREE], ids=["one position", "three"])
def test_rows_of_tables_follow_each_other(spec: ModelSpec) -> None:
    """As onnxruntime takes them to; each is the row that its token turns by."""
    turns = Turns(spec, 16, np.float32)
    positions = [None, np.array([7, 8]), np.array([7, 7]), np.array([15, 16]), np.array([400, 401])]
    if spec is THREE:
        positions += [POSITIONS, np.array([[3, 4]] * 3)]
    pasts = [4] * len(positions)
    rows = turns.rows(pasts, 2, positions)
    assert (np.diff(rows) == 1).all()
    assert rows[:2].tolist() == [[4, 5], [7, 8]]  # no row of their own
    for own, row in zip(positions, rows, strict=True):
        expected = cos_and_sin(np.array([4, 5]) if own is None else own, spec)
        for table, values in zip(turns.tables, expected, strict=True):
            assert np.array_equal(table[row], values)


def test_tables_grow_once_and_text_leaves_them_as_they_are() -> None:
    turns = Turns(ONE, 16, np.float16)
    before = turns.tables
    assert turns.rows([0], 4, [None]).tolist() == [[0, 1, 2, 3]]
    assert turns.tables is before
    assert turns.rows([3], 4, [np.array([3, 3, 3])]).tolist() == [[16, 17, 18, 19]]  # padded by one
    grown = turns.tables
    assert [table.shape for table in grown] == [(20, 8)] * 2
    assert {table.dtype for table in grown} == {np.dtype(np.float16)}
    turns.rows([3], 2, [np.array([1, 9])])
    assert turns.tables is grown
