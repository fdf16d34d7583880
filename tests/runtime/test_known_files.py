"""Weights are read once, and again after anything was done to them."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from edge.runtime import known_files
from edge.runtime.files import sha256_of
from edge.runtime.known_files import FILE, MOST, KnownFiles


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty and not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    return tmp_path / "home" / "cache" / "edgeglm"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read, in order; a file counts as settled at once."""
    found: list[Path] = []

    def counted(path: Path) -> str:
        found.append(path)
        return sha256_of(path)

    monkeypatch.setattr(known_files, "sha256_of", counted)
    monkeypatch.setattr(known_files, "SETTLED_NS", -(10**9))
    return found


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "openvino_model.bin"
    path.write_bytes(b"weights")
    return path


def test_a_file_is_read_once_and_remembered_by_later_processes(cache: Path, weights: Path, reads: list[Path]) -> None:
    sha256 = sha256_of(weights)
    known = KnownFiles()
    assert known.is_right(weights, sha256)
    assert known.is_right(weights, sha256)
    assert KnownFiles().is_right(weights, sha256)  # as another process sees it
    assert reads == [weights]
    assert known.is_right(weights, sha256, anew=True)
    assert reads == [weights, weights]
    assert stat.S_IMODE((cache / FILE).stat().st_mode) == 0o600
    assert str(weights) not in (cache / FILE).read_text()


def _write_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"W")


def _write_and_put_the_time_back(path: Path) -> None:
    status = path.stat()
    _write_in_place(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replace(path: Path) -> None:
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"Weights")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def _link_elsewhere(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"Weights")
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize("change", [_write_in_place, _write_and_put_the_time_back, _replace, _link_elsewhere])
def test_a_file_that_was_touched_is_read_again(cache: Path, weights: Path, reads: list[Path], change: object) -> None:
    sha256 = sha256_of(weights)
    known = KnownFiles()
    assert known.is_right(weights, sha256)
    time.sleep(0.02)  # more than a tick of the file system's clock
    assert callable(change)
    change(weights)
    assert not known.is_right(weights, sha256)
    assert not KnownFiles().is_right(weights, sha256)
    assert len(reads) == 3


def test_another_sha256_of_the_same_file(cache: Path, weights: Path, reads: list[Path]) -> None:
    assert KnownFiles().is_right(weights, sha256_of(weights))
    assert not KnownFiles().is_right(weights, "0" * 64)


def test_a_file_that_was_just_written_is_not_remembered(
    cache: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could be written again without another time to tell of it."""
    monkeypatch.setattr(known_files, "SETTLED_NS", 3600 * 10**9)
    assert KnownFiles().is_right(weights, sha256_of(weights))
    assert not (cache / FILE).exists()


def test_a_file_that_is_written_while_it_is_read(cache: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = sha256_of(weights)

    def late(path: Path) -> str:
        found = sha256_of(path)
        time.sleep(0.02)
        _write_in_place(path)
        return found

    monkeypatch.setattr(known_files, "sha256_of", late)
    monkeypatch.setattr(known_files, "SETTLED_NS", -(10**9))
    assert not KnownFiles().is_right(weights, sha256)
    assert not (cache / FILE).exists()


def test_no_more_is_kept_than_a_bound(cache: Path, weights: Path, reads: list[Path]) -> None:
    for number in range(3):
        weights.write_bytes(bytes([number]))
        assert KnownFiles().is_right(weights, sha256_of(weights))
    lines = (cache / FILE).read_text().splitlines()
    assert len(lines) == 3
    (cache / FILE).write_text("".join(f"{number:064x}\n" for number in range(2 * MOST)))
    weights.write_bytes(b"more")
    assert KnownFiles().is_right(weights, sha256_of(weights))
    assert len((cache / FILE).read_text().splitlines()) <= MOST
    assert [path.name for path in cache.iterdir()] == [FILE]


def test_an_empty_list_is_one(cache: Path, weights: Path, reads: list[Path]) -> None:
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(b"")
    for _ in range(2):
        assert KnownFiles().is_right(weights, sha256_of(weights))
    assert reads == [weights]


def test_where_nothing_can_be_kept_every_process_reads(
    tmp_path: Path, weights: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    known = KnownFiles()
    for _ in range(2):
        assert known.is_right(weights, sha256_of(weights))
    assert KnownFiles().is_right(weights, sha256_of(weights))
    assert reads == [weights, weights]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", _no_home)
    assert KnownFiles().is_right(weights, sha256_of(weights))


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_the_list_may_be_no_file(cache: Path, weights: Path, reads: list[Path]) -> None:
    cache.mkdir(parents=True)
    os.mkfifo(cache / FILE)
    assert KnownFiles().is_right(weights, sha256_of(weights))
    assert stat.S_ISFIFO((cache / FILE).stat().st_mode)


@pytest.mark.parametrize(
    "content",
    [b"my shopping list\n", b"\xff\x00", b"\n" * 1000, b"x" * 10_000_000, b"0" * 64 + b"\nmore\n", b"x" * 10**6],
)
def test_a_file_of_others_stays(cache: Path, weights: Path, reads: list[Path], content: bytes) -> None:
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(content)
    for _ in range(2):
        assert KnownFiles().is_right(weights, sha256_of(weights))
    assert reads == [weights] * 2, "nothing can be remembered"
    assert (cache / FILE).read_bytes() == content
