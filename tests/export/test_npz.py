"""Entries of an .npz: what numpy reads back, and the same bytes at any time."""

from __future__ import annotations

import io
import time
import zipfile

import numpy as np
import pytest

from edge.export.npz import put_array

ARRAYS: dict[str, np.ndarray] = {
    "ids": np.arange(7),
    "logits": np.linspace(0, 1, 5000, dtype=np.float32).reshape(2, -1),
    "none": np.zeros(0),
}


def written(*, compressed: bool) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in ARRAYS.items():
            put_array(archive, name, array, compressed=compressed)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_numpy_reads_what_was_put(compressed: bool) -> None:
    content = written(compressed=compressed)
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        assert list(found) == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)
    assert (len(content) < sum(array.nbytes for array in ARRAYS.values())) == compressed


@pytest.mark.parametrize("compressed", [False, True])
def test_the_bytes_follow_from_the_arrays(compressed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(compressed=compressed)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2_000_000_000))
    assert written(compressed=compressed) == before


def test_an_array_beyond_what_a_plain_entry_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10_000)
    content = written(compressed=False)
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        assert np.array_equal(found["logits"], ARRAYS["logits"])
