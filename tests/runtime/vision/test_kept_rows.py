"""What a picture became is found again bit by bit, or not at all; files of others stay."""

from __future__ import annotations

import logging
import os
import stat
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from edge.runtime.arrays import Hidden
from edge.runtime.notices import LOGGER
from edge.runtime.vision import kept_rows
from edge.runtime.vision.kept_rows import KeptRows

KEY, OTHER = b"k" * 32, b"o" * 32
SHAPE = (6, 5)
FILE_BYTES = 56 + 32 + 4 * 6 * 5
PLENTY = 1 << 20


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, LOGGER)
    return caplog


def rows_of(seed: int = 0) -> Hidden:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def file_in(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_rows_are_found_by_their_key_and_shape_alone_in_memory_and_by_another_process(tmp_path: Path) -> None:
    rows, kept = rows_of(), KeptRows(tmp_path / "new", PLENTY)
    kept.keep(KEY, rows)
    assert kept.find(KEY, SHAPE) is rows
    another = KeptRows(tmp_path / "new", PLENTY)
    found = another.find(KEY, SHAPE)
    assert found is not None
    assert found.tobytes() == rows.tobytes()
    assert another.find(KEY, SHAPE) is found  # in memory now
    assert not found.flags.writeable
    assert not rows.flags.writeable
    assert KeptRows(tmp_path / "new", PLENTY).find(OTHER, SHAPE) is None
    assert KeptRows(tmp_path / "new", PLENTY).find(KEY, (5, 6)) is None
    assert KeptRows(tmp_path, PLENTY).find(KEY, SHAPE) is None
    if os.name == "posix":
        assert stat.S_IMODE(file_in(tmp_path / "new").stat().st_mode) == 0o600


def test_nothing_is_written_or_read_when_it_is_off(tmp_path: Path) -> None:
    KeptRows(tmp_path, PLENTY).keep(KEY, rows_of())
    off = KeptRows(tmp_path, 0)
    assert off.find(KEY, SHAPE) is None
    off.keep(OTHER, rows_of())
    assert off.find(OTHER, SHAPE) is not None  # from memory
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", ["flipped", "head", "cut", "longer", "empty", "zeros", "another's"])
def test_damaged_files_are_as_good_as_none_and_written_anew(
    damage: str, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    KeptRows(tmp_path, PLENTY).keep(KEY, rows_of())
    path = file_in(tmp_path)
    content = path.read_bytes()
    assert len(content) == FILE_BYTES
    KeptRows(tmp_path / "other", PLENTY).keep(OTHER, rows_of(1))
    damaged = {
        "flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        "head": content[:20] + bytes([content[20] ^ 1]) + content[21:],
        "cut": content[:-1],
        "longer": content + b"\0",
        "empty": b"",
        "zeros": bytes(len(content)),
        "another's": file_in(tmp_path / "other").read_bytes(),
    }
    path.write_bytes(damaged[damage])
    kept = KeptRows(tmp_path, PLENTY)
    assert kept.find(KEY, SHAPE) is None
    kept.keep(KEY, rows_of())
    assert path.read_bytes() == content
    assert said.messages == []


def test_files_of_others_stay(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    """In the place of ours, and beside ours when the oldest are removed."""
    first, folder = KeptRows(tmp_path / "first", PLENTY), tmp_path / "second"
    first.keep(KEY, rows_of())
    folder.mkdir()
    strangers = [folder / file_in(tmp_path / "first").name, folder / "notes.txt", folder / f"{'0' * 64}.rows"]
    for stranger in strangers:
        stranger.write_text("somebody else's")
        os.utime(stranger, (1, 1))
    kept = KeptRows(folder, FILE_BYTES)
    kept.keep(KEY, rows_of())
    assert said.messages == [
        f"what a picture became is not kept on the disk: {strangers[0]} exists and is not ours; remove it, or name "
        "another folder"
    ]
    assert kept.find(KEY, SHAPE) is not None
    for number in range(3):
        kept.keep(bytes([number]) * 32, rows_of(number))
    assert [stranger.read_text() for stranger in strangers] == ["somebody else's"] * 3
    assert len(list(folder.iterdir())) == 4  # they, and the latest of ours


def test_those_that_were_not_used_for_longest_are_removed(tmp_path: Path) -> None:
    keys = [bytes([number]) * 32 for number in range(4)]
    kept = KeptRows(tmp_path, 3 * FILE_BYTES)
    for age, key in enumerate(keys[:3]):
        kept.keep(key, rows_of(age))
        newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (1000 + age, 1000 + age))
    assert KeptRows(tmp_path, PLENTY).find(keys[0], SHAPE) is not None  # and used now
    kept.keep(keys[3], rows_of(3))
    fresh = KeptRows(tmp_path, PLENTY)
    assert [fresh.find(key, SHAPE) is not None for key in keys] == [True, False, True, True]


def test_rows_larger_than_the_limit_are_not_written(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    kept = KeptRows(tmp_path, FILE_BYTES - 1)
    kept.keep(KEY, rows_of())
    kept.keep(OTHER, rows_of())
    assert list(tmp_path.iterdir()) == []
    assert said.messages == [
        f"what a picture became is not kept on the disk: it has {FILE_BYTES} bytes, and kept_pictures_bytes is "
        f"{FILE_BYTES - 1}"
    ]  # once
    assert kept.find(KEY, SHAPE) is not None


def test_memory_holds_the_latest_within_its_limit() -> None:
    kept = KeptRows(None, 0, memory_bytes=250)
    for number in range(3):
        kept.keep(bytes([number]) * 32, rows_of(number))
    assert [kept.find(bytes([n]) * 32, SHAPE) is not None for n in range(3)] == [False, True, True]
    small = KeptRows(None, 0, memory_bytes=1)
    small.keep(KEY, rows_of())
    assert small.find(KEY, SHAPE) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("place", ["a file", "/proc/pictures"])
def test_a_folder_that_cannot_be_written_to_is_a_notice(
    place: str, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "file" if place == "a file" else Path(place)
    if place == "a file":
        folder.write_text("")
    kept = KeptRows(folder, PLENTY)
    kept.keep(KEY, rows_of())
    assert kept.find(KEY, SHAPE) is not None
    assert KeptRows(folder, PLENTY).find(KEY, SHAPE) is None
    (line,) = said.messages
    assert line.startswith("what a picture became is not kept on the disk: ")


def test_a_full_disk_is_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    kept = KeptRows(tmp_path, PLENTY)
    kept.keep(KEY, rows_of())
    assert kept.find(KEY, SHAPE) is not None
    assert list(tmp_path.iterdir()) == []
    (line,) = said.messages
    assert "No space left on device" in line


def test_the_folder_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_rows, "cache_folder", lambda: tmp_path / "cache")
    KeptRows(None, PLENTY).keep(KEY, rows_of())
    path = file_in(tmp_path / "cache" / "pictures")
    magic, version, width, number, _ = struct.unpack_from("<8sIIQ32s", path.read_bytes())
    assert (magic, version, width, number) == (b"EDGEROWS", 1, 5, 6)
