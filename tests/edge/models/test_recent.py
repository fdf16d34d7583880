"""Which bundle is meant where none is named, and that remembering it is never anybody's problem."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge import cli
from edge.models.recent import FILE, MOST, Used, choose, recent, remember
from edge.runtime.errors import BundleError

Put = Callable[[str], Path]
DAY = time.strftime("%Y-%m-%d")


@pytest.fixture
def file(home: Path) -> Path:
    return home / "state" / "edgeglm" / FILE


def test_the_last_one_is_meant(put: Put, file: Path) -> None:
    one, two = put("one"), put("two")
    with pytest.raises(BundleError, match="no BUNDLE is given, and none was used before; give one of one, two"):
        choose()
    remember(one)
    remember(two)
    assert choose().path == two
    remember(one)
    assert [used.path for used in recent()] == [one, two]
    assert choose().why == "the last used"
    (one / "manifest.json").unlink()
    assert choose().path == two
    assert file.stat().st_mode & 0o077 == 0


def test_the_only_one_is_meant(put: Put) -> None:
    with pytest.raises(
        BundleError, match=r"no BUNDLE is given, and .*models has none; give the folder of one, or make"
    ):
        choose()
    assert choose_after(put("glm4")) == "the only one"


def choose_after(folder: Path) -> str:
    choice = choose()
    assert choice.path == folder
    return choice.why


def test_nothing_is_written_for_what_is_known(put: Put, file: Path) -> None:
    one = put("one")
    remember(one)
    before = file.stat()
    remember(one)
    assert file.stat().st_ino == before.st_ino
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_the_oldest_are_forgotten(tiny_bundle: Path, file: Path, tmp_path: Path) -> None:
    for number in range(MOST + 5):
        remember(tmp_path / str(number))
    assert len(json.loads(file.read_text())) == MOST
    assert recent() == []  # none of them is there


@pytest.mark.parametrize(
    "content",
    [b"notes of mine", b"{}", b"[1]", b'[{"path": 1, "day": "2026-01-01"}]', b'[{"path": "/x", "day": "\x1b[2J"}]',
     b"\xff\xfe", b"[" * 10_000],
)  # fmt: skip
def test_a_file_of_others_stays(content: bytes, put: Put, file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    remember(put("one"))
    assert file.read_bytes() == content
    assert recent() == []
    assert choose().why == "the only one"


@pytest.mark.parametrize("content", [b"", b"\0" * 512, b"\n"])
def test_what_a_power_failure_leaves_is_replaced(content: bytes, put: Put, file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    one = put("one")
    remember(one)
    assert recent() == [Used(one, DAY)]


@pytest.mark.parametrize("kind", ["read-only", "a file", "a folder", "a pipe"])
def test_where_it_cannot_be_kept_nothing_is_said(
    kind: str, put: Put, file: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put("one")
    if kind == "read-only":
        monkeypatch.setattr(Path, "mkdir", denied)
    elif kind == "a file":
        (home / "state").parent.mkdir(exist_ok=True)
        (home / "state").touch()
    else:
        file.parent.mkdir(parents=True)
        if kind == "a folder":
            file.mkdir()
        else:
            os.mkfifo(file)
    for given in ("one", "./one"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
        assert cli.main(["chat", given, "--engine", "onnx"]) == (given != "one")
    assert capsys.readouterr().err.count("\n") == 1  # of the wrong path
    assert recent() == []


def denied(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_chat_without_a_bundle(
    put: Put, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chat(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
        return cli.main(["chat", *words]), capsys.readouterr().err

    code, said = chat()
    assert code == 1
    assert said.startswith("edge: no BUNDLE is given")
    one = put("one")
    code, said = chat("--engine", "onnx")
    assert said.splitlines()[0] == "edge: chatting with one, the only one"
    assert recent() == [Used(one, DAY)]
    put("two")
    assert chat("two", "--engine", "onnx")[1] == chat("--engine", "onnx")[1].partition("\n")[2]
    assert chat()[1].startswith("edge: chatting with two, the last used\n")
