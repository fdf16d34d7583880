"""A pipe whose reader has left: a quiet end, by whatever name the system calls it."""

from __future__ import annotations

import errno
import io
import sys

import psutil  # noqa: F401  # takes the system for what it is when it is first imported, before that is another
import pytest

from edge import cli
from edge.commands import streams


class Pipe(io.BytesIO):
    """Nobody reads from it any more."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def write(self, _: object) -> int:
        raise OSError(self._number, "of the system")


@pytest.mark.parametrize(
    ("platform", "number", "code"),
    [
        ("linux", errno.EPIPE, cli.READER_LEFT),
        ("win32", errno.EPIPE, cli.READER_LEFT),
        ("win32", errno.EINVAL, cli.READER_LEFT),  # what Windows says of a closed pipe; it was a traceback
        ("linux", errno.EINVAL, 1),
        ("win32", errno.ENOSPC, 1),
    ],
)
def test_a_reader_that_has_left(
    platform: str, number: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", platform)
        patch.setattr(sys, "stdout", io.TextIOWrapper(Pipe(number)))
        assert cli.main(["devices"]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == (code == 1)
    assert code != 1 or said.startswith("edge: standard output cannot be written (of the system)")


def test_what_is_told_by_the_environment_is_the_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    for told, utf8, expected in (
        ("", "", "utf-8"),
        (":replace", "", "utf-8"),
        ("", "1", "utf-8"),
        ("gbk", "", "gbk"),
        ("gbk:strict", "0", "gbk"),
        ("", "0", "cp1252"),
    ):
        monkeypatch.setenv("PYTHONIOENCODING", told)
        monkeypatch.setenv("PYTHONUTF8", utf8)
        out = io.TextIOWrapper(io.BytesIO(), "gbk" if "gbk" in told else "cp1252")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), "cp1252"))
            with streams.guarded():
                assert sys.stdout.encoding == expected, (told, utf8)
