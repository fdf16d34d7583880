"""The history: private, bounded, and never worth a chat."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.terminal import history as histories
from edge.terminal.history import MOST, History


def quiet(text: str) -> None:
    raise AssertionError(text)


def test_lines_are_there_in_the_next_chat(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "history"
    first = History(path, quiet)
    lines = ["hi", "def f(x):\n    return x + 1", "你好，世界 👩‍💻", '/save "a b"', "tab\there"]
    assert all(map(first.add, lines))
    assert History(path, quiet).lines == lines
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("line", [" my password is x", "\tindented", "", "   ", "caf\udce9"])
def test_what_is_not_kept(tmp_path: Path, line: str) -> None:
    history = History(tmp_path / "history", quiet)
    assert not history.add(line)
    assert history.lines == []
    assert not (tmp_path / "history").exists()


def test_a_repeated_line_is_kept_once(tmp_path: Path) -> None:
    history = History(tmp_path / "history", quiet)
    assert [history.add(line) for line in ("a", "a", "b", "a")] == [True, False, True, True]
    assert History(tmp_path / "history", quiet).lines == ["a", "b", "a"]


def test_it_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "history"
    history = History(path, quiet)
    for i in range(2 * MOST + 1):
        history.add(f"line {i}")
    again = History(path, quiet)
    assert again.lines == [f"line {i}" for i in range(MOST + 1, 2 * MOST + 1)]
    assert path.read_bytes().count(b"\n") == MOST
    again.add("x" * (histories.LONGEST + 1))  # a book
    assert again.lines[-1].startswith("x")
    assert path.read_bytes().count(b"\n") == MOST


def test_a_mode_that_others_can_read_is_corrected(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b'"a"\n')
    path.chmod(0o644)
    assert History(path, quiet).lines == ["a"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_last_line_that_was_cut_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b'"a"\n"b"\n"c')
    History(path, quiet).add("d")
    assert History(path, quiet).lines == ["a", "b", "d"]


@pytest.mark.parametrize(
    "content", [b"somebody's notes\n", b"{}\n", b"[1]\n", b'"a"\nb\n', b"\xff\xfe\n", b"\0" * 50 + b"\n"]
)
def test_a_file_of_others_stays(tmp_path: Path, content: bytes) -> None:
    """It is one line of warning, and lines of this chat are remembered all the same."""
    path = tmp_path / "history"
    path.write_bytes(content)
    said: list[str] = []
    history = History(path, said.append)
    assert history.add("a")
    assert history.add("b")
    assert history.lines == ["a", "b"]
    assert path.read_bytes() == content
    (warning,) = said
    assert warning.startswith("what you type is not kept for later chats: ")
    assert "\n" not in warning
    assert "--no-history" in warning


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("make", [make_fifo, make_folder, make_link])
def test_what_is_no_file_is_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "history"
    (tmp_path / "elsewhere").write_bytes(b"precious\n")
    make(path)
    said: list[str] = []
    assert History(path, said.append).add("a")
    assert len(said) == 1
    assert (tmp_path / "elsewhere").read_bytes() == b"precious\n"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    history = History(tmp_path / "file" / "history", said.append)
    history.add("a")
    assert (history.lines, len(said)) == (["a"], 1)


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    history = History(tmp_path / "history", said.append)
    history.add("a")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    history.add("b")
    history.add("c")
    assert history.lines == ["a", "b", "c"]
    assert len(said) == 1
    assert "No space left on device" in said[0]


def test_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    history = History(None, quiet)
    history.add("a")
    assert history.lines == ["a"]
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.text(max_size=20), max_size=10))
def test_any_lines_come_back(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("history") / "history"
    history = History(path, quiet)
    for line in lines:
        history.add(line)
    assert History(path, quiet).lines == history.lines
