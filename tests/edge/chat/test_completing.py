"""What Tab offers."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.terminal.completing import completed, path_of
from edge.terminal.slash import COMMANDS


def test_commands() -> None:
    assert completed("/s") == ("/s", ["/system ", "/save ", "/stats", "/stop"])
    assert completed("/ex") == ("/ex", ["/exit"])
    assert len(completed("/")[1]) == len(COMMANDS)
    assert completed("/tools o") == ("o", ["on", "off"])
    for nothing in ("", "hi /s", "/stats ", "/system a", "/nothing x", " /s", "a\n/s", "/save x\ny"):
        assert completed(nothing)[1] == [], nothing


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("notes.txt", "notes 2.txt", ".hidden", "你好.md", "a\nb", "n\x1b[2J"):
        (tmp_path / name).touch()
    (tmp_path / "novels").mkdir()
    (tmp_path / "novels" / "one.txt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert completed("/file no") == ("no", ["notes 2.txt", "notes.txt", "novels/"])
    assert completed("/load notes ") == ("notes ", ["notes 2.txt"])
    assert completed("/file novels/")[1] == ["novels/one.txt"]
    assert completed("/save 你")[1] == ["你好.md"]
    assert completed("/file .h")[1] == [".hidden"]
    assert completed("/file ~/nov")[1] == ["~/novels/"]
    assert completed(f"/file {tmp_path}/novels/o")[1] == [f"{tmp_path}/novels/one.txt"]
    assert completed("/file ")[1] == ["notes 2.txt", "notes.txt", "novels/", "你好.md"]
    for nothing in ("/file none/", "/file \0/", f"/file {'x' * 5000}/"):
        assert completed(nothing)[1] == []


def test_a_path_as_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of(" my notes.txt ") == "my notes.txt"
    assert path_of("'my notes.txt'") == path_of('"my notes.txt"') == "my notes.txt"
    assert path_of("~/notes") == str(tmp_path / "notes")
    assert path_of("'") == "'"
