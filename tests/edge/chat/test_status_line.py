"""The line below an answer: it is seen while the answer is written, and leaves no trace of itself."""

from __future__ import annotations

import io
import os
from typing import TextIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.terminal import status_line
from edge.terminal.status_line import StatusLine
from tests.edge.chat.screen import Screen

PIECES = st.text(alphabet=st.sampled_from("ab c\n\t你，é😀\x07\u0301\u200d"), max_size=12)


class Terminal(io.StringIO):
    """A stream whose text a screen shows."""

    def __init__(self, screen: Screen, is_terminal: bool = True) -> None:
        super().__init__()
        self._screen, self._is_terminal = screen, is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        if self._is_terminal:
            self._screen.write(text)
        return super().write(text)


def started(
    patch: pytest.MonkeyPatch, screen: Screen, *, out: bool = True, error: bool = True, term: str = "xterm"
) -> tuple[StatusLine, Terminal, Terminal]:
    streams = Terminal(screen, out), Terminal(screen, error)
    patch.setattr("sys.stdout", streams[0])
    patch.setattr("sys.stderr", streams[1])
    patch.setenv("TERM", term)
    patch.setattr(status_line, "_width", lambda _: screen.width)
    ticks = iter(range(10**9))
    return StatusLine(same, lambda: next(ticks)), *streams


def same(stream: TextIO) -> TextIO:
    return stream


@settings(max_examples=300)
@given(
    pieces=st.lists(PIECES, max_size=30),
    width=st.integers(2, 20),
    height=st.integers(2, 6),
    before=st.integers(0, 6),
)
def test_it_leaves_no_trace(pieces: list[str], width: int, height: int, before: int) -> None:
    """Whatever the text and wherever it wraps and scrolls, the screen is that of the text alone."""
    alone, screen = Screen(width, height), Screen(width, height)
    text = "".join(pieces).replace("\x07", "\\x07")
    alone.write("\n" * before + text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(status_line, "visible", lambda piece: piece.replace("\x07", "\\x07"))
        line, out, _ = started(patch, screen)
        screen.write("\n" * before)
        for i, piece in enumerate(pieces):
            line.show(f"{i} tokens of a long line")
            line.write(piece.replace("\x07", "\\x07"))
        line.show("the last")
        line.hide()
    assert out.getvalue() == text
    assert screen.text() == alone.text()
    assert min(screen.column, width - 1) == min(alone.column, width - 1)


def test_it_is_seen_below_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(20, 3)
    line, _, _ = started(monkeypatch, screen)
    line.show("reading")
    assert screen.text() == ["", "reading"]
    line.write("Hello")
    assert screen.text() == ["Hello"]
    line.show("5 tok/s, of the context there is much left")
    assert screen.text() == ["Hello", "5 tok/s, of the con"]
    line.write(" you\nand you\nand you\n")
    line.show("6 tok/s")
    assert screen.text() == ["Hello you", "and you", "and you", "", "6 tok/s"]
    line.hide()
    line.hide()
    assert screen.text() == ["Hello you", "and you", "and you"]


def test_it_changes_at_most_every_tenth_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """But is there all the time."""
    screen = Screen(20, 3)
    _, _, _ = started(monkeypatch, screen)
    times = iter([0.0, 0.05, 0.09, 0.15])
    line = StatusLine(same, lambda: next(times))
    for text, seen in (("a", "a"), ("b", "a"), ("c", "a"), ("d", "d")):
        line.write("x")
        line.show(text)
        assert screen.text()[1] == seen


@pytest.mark.parametrize(
    ("out", "error", "term"), [(True, False, "xterm"), (True, True, "dumb"), (False, False, "xterm"), (True, True, "")]
)
def test_where_there_is_none(out: bool, error: bool, term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line, stdout, stderr = started(monkeypatch, Screen(20, 3), out=out, error=error, term=term)
    line.show("a")
    line.write("text")
    line.show("b")
    line.hide()
    assert (stdout.getvalue(), stderr.getvalue()) == ("text", "")


def test_nothing_but_text_goes_into_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(20, 3)
    line, stdout, stderr = started(monkeypatch, screen, out=False)
    line.write("text")
    line.show("3 tok/s")
    line.write(" and more")
    assert stdout.getvalue() == "text and more"
    assert "3 tok/s" in stderr.getvalue()
    line.hide()
    assert screen.text() == []


@pytest.mark.parametrize("colour", [True, False])
def test_colours(colour: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if colour:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", "1")
    line, _, stderr = started(monkeypatch, Screen(20, 3))
    line.show("a")
    assert ("\x1b[2m" in stderr.getvalue()) == colour


def test_a_terminal_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    line, _, stderr = started(monkeypatch, Screen(20, 3))

    def gone(_: str) -> int:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(stderr, "write", gone)
    line.show("a")
    line.show("b")
    line.hide()
