"""Rounding without text makes the bytes that NNCF makes, and NNCF's are taken where it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from edge.export.compress import data_free
from edge.export.compress import nncf as compress_module
from edge.export.compress.nncf import Compressor, same_bytes
from edge.export.compress.precision import Precision
from edge.export.tensors import FloatArray, PackedTensor

NAME = "layers.1.mlp.down.weight"
PRECISIONS = [
    Precision(8),
    Precision(8, symmetric=True),
    Precision(4),
    Precision(4, symmetric=True),
    Precision(4, group_size=32),
    Precision(4, group_size=128),
    Precision(4, symmetric=True, group_size=128),
]


def hard_rows(dtype: Any) -> FloatArray:
    """Rows of very different sizes, with ties, zeros, one sign only, and values that are nearly nothing."""
    rng = np.random.default_rng(5)
    rows = (rng.normal(size=(160, 384)) * rng.uniform(0.001, 2, (160, 1))).astype(np.float32)
    rows[50:90] = np.rint(rows[50:90] * 8) * np.float32(0.0375)
    rows[3, :128], rows[6] = 0, 0
    rows[4], rows[5] = np.abs(rows[4]), -np.abs(rows[5])
    rows[7], rows[9, :128] = 1e-9, 1e-38
    rows[8] *= 1e-6
    rows[10] *= 1e3
    return rows.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_the_bytes_are_those_of_nncf(precision: Precision, dtype: Any) -> None:
    rows = hard_rows(dtype)
    assert same_bytes(data_free.compress(rows, precision), Compressor().by_nncf(NAME, rows, precision))


@pytest.mark.parametrize("precision", [Precision(4, group_size=64), Precision(8, symmetric=True)], ids=str)
def test_pieces_of_any_size_give_the_same_bytes(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = hard_rows(np.float32)
    whole = data_free.compress(rows, precision)
    for in_cache, per_core in ((1, 1), (384 * 3, 384 * 7), (384 * 9, 384 * 2)):
        monkeypatch.setattr(data_free, "IN_CACHE", in_cache)
        monkeypatch.setattr(data_free, "PER_CORE", per_core)
        assert same_bytes(data_free.compress(rows, precision), whole)


def test_nncf_is_asked_once_for_each_kind_of_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    real = Compressor.by_nncf

    def by_nncf(self: Compressor, name: str, weight: FloatArray, precision: Precision) -> PackedTensor:
        asked.append(weight.shape)
        return real(self, name, weight, precision)

    monkeypatch.setattr(Compressor, "by_nncf", by_nncf)
    monkeypatch.setattr(compress_module, "COMPARED", 384 * 32)
    compressor, rows = Compressor(), hard_rows(np.float32)
    for precision in (Precision(8), Precision(4, group_size=64), Precision(8)):
        compressor.compress(NAME, rows, precision)
    compressor.compress(NAME, np.ascontiguousarray(rows[:, :128]), Precision(8))
    assert asked == [(32, 384), (32, 384), (96, 128)]


def test_where_nncf_makes_other_bytes_it_makes_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a later release of it might."""
    real, rows = Compressor.by_nncf, hard_rows(np.float32)

    def by_nncf(self: Compressor, name: str, weight: FloatArray, precision: Precision) -> PackedTensor:
        found = real(self, name, weight, precision)
        return replace(found, data=found.data ^ np.uint8(1))

    monkeypatch.setattr(Compressor, "by_nncf", by_nncf)
    found = Compressor().compress(NAME, rows, Precision(8))
    assert same_bytes(found, by_nncf(Compressor(), NAME, rows, Precision(8)))


@pytest.mark.parametrize("shape", [(160, 63), (160, 62)], ids=str)
def test_small_matrices_and_rows_that_end_within_a_byte_are_left_to_nncf(shape: tuple[int, int]) -> None:
    rows = np.ascontiguousarray(hard_rows(np.float32)[:, : shape[1]])
    assert not data_free.fits(shape, Precision(4))
    assert same_bytes(Compressor().compress(NAME, rows, Precision(4)), Compressor().by_nncf(NAME, rows, Precision(4)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=str)
def test_matrices_that_lie_apart_in_memory_are_rounded_as_copies_of_them(dtype: type[np.floating[Any]]) -> None:
    whole = hard_rows(np.float32).astype(dtype)
    for apart in (whole[:, :128], whole[::2], whole[:128, :128].T):
        assert not apart.flags.c_contiguous
        for precision in (Precision(8), Precision(4, group_size=64)):
            ours, theirs = (
                to(Compressor(), NAME, apart, precision) for to in (Compressor.compress, Compressor.by_nncf)
            )
            expected = Compressor().by_nncf(NAME, np.ascontiguousarray(apart), precision)
            assert same_bytes(theirs, expected)
            assert same_bytes(ours, expected)
