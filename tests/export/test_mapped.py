"""What is read of a checkpoint's files stays what it is for as long as anyone looks at it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edge.export.checkpoint import mapped
from edge.export.checkpoint.mapped import KEPT, MappedFiles
from edge.runtime.errors import TensorError

SIZE = 1 << 12
PARTS = 8


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mapped, "LEAST_KEPT", 1)
    path = tmp_path / "weights"
    path.write_bytes(np.random.default_rng(3).bytes(PARTS * SIZE))
    return path


def part(file: Path, place: int, size: int = SIZE) -> npt.NDArray[np.uint8]:
    return np.frombuffer(file.read_bytes(), np.uint8)[place * SIZE :][:size]


def test_memory_is_used_again_when_its_last_view_is_gone(file: Path) -> None:
    files = MappedFiles()
    first = files.view(file, 0, SIZE)
    place = first.ctypes.data
    rows = first.view(np.uint16).reshape(8, -1)[3:]  # of another type and shape, and without the first rows
    del first
    others = [files.view(file, n * SIZE, SIZE) for n in range(1, PARTS)]
    assert place not in [other.ctypes.data for other in others]
    np.testing.assert_array_equal(rows, part(file, 0).view(np.uint16).reshape(8, -1)[3:])
    for n, other in enumerate(others, 1):
        np.testing.assert_array_equal(other, part(file, n))
    del rows
    smaller = files.view(file, SIZE, SIZE // 2)
    assert smaller.ctypes.data == place
    np.testing.assert_array_equal(smaller, part(file, 1, SIZE // 2))
    assert not smaller.flags.writeable


def test_no_more_memory_is_kept_than_threads_read_into(file: Path) -> None:
    files = MappedFiles()
    views = [files.view(file, n * SIZE, SIZE) for n in range(PARTS)]
    places = [view.ctypes.data for view in views]
    views.clear()
    again = [files.view(file, n * SIZE, SIZE) for n in range(PARTS)]
    assert len({view.ctypes.data for view in again[:KEPT]} & set(places)) == KEPT
    assert len(files._free) == 0
    again.clear()
    assert len(files._free) == KEPT


def test_digests_are_those_of_the_bytes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "HASHED_BYTES", 1000)
    files = MappedFiles()
    for start, size in ((0, PARTS * SIZE), (17, 1000), (5, 1), (9, 0)):
        assert files.sha256(file, start, size) == hashlib.sha256(file.read_bytes()[start : start + size]).hexdigest()
    with pytest.raises(TensorError, match="ends at byte"):
        files.sha256(file, 1, PARTS * SIZE)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="systems that take no advice keep what they like")
def test_only_what_was_on_the_disk_alone_is_given_back(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advice: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *given: advice.append(given))
    monkeypatch.setattr(mapped, "_in_memory", lambda _, place: place < SIZE)
    files = MappedFiles()
    for place in (0, 1):
        files.prefetch(file, place * SIZE, SIZE)
    advice.clear()
    for place in (0, 1, 1, 2):  # once each, and not what was never asked for
        files.done_with(file, place * SIZE, SIZE)
    assert advice == [(SIZE, SIZE, os.POSIX_FADV_DONTNEED)]
    np.testing.assert_array_equal(files.view(file, SIZE, SIZE), part(file, 1))


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="systems that do not say what is in memory")
def test_what_was_just_read_is_in_memory(file: Path) -> None:
    file.read_bytes()
    descriptor = os.open(file, os.O_RDONLY)
    try:
        assert mapped._in_memory(descriptor, SIZE)
    finally:
        os.close(descriptor)
