"""Text that a terminal is shown: what it would obey is escaped, and everything else is as it was."""

from __future__ import annotations

import unicodedata

import pytest

from edge.runtime.terminal_text import MAX_LINE, is_line, on_one_line, visible

OBEYED = [chr(code) for code in range(0x10000) if unicodedata.category(chr(code)) == "Cc"]
DIRECTIONS = ["\u202a", "\u202e", "\u2066", "\u2069"]
LINE_ENDS = ["\n", "\r", "\v", "\f", "\x85", "\u2028", "\u2029"]


@pytest.mark.parametrize("text", ["", "plain", "deux mots", "\u662f\u7684 \u00e9", "\U0001f600"])
def test_text_that_a_terminal_shows_stays(text: str) -> None:
    assert visible(text) == on_one_line(text) == text
    assert is_line(text)


@pytest.mark.parametrize("character", [*OBEYED, *DIRECTIONS])
def test_what_a_terminal_obeys_is_escaped(character: str) -> None:
    text = f"a{character}b"
    escaped = f"a{ascii(character)[1:-1]}b"
    assert on_one_line(text) == escaped
    assert visible(text) == (text if character in "\t\n" else escaped)
    assert not is_line(text)


@pytest.mark.parametrize("end", LINE_ENDS)
def test_one_line_is_one_line(end: str) -> None:
    assert len(on_one_line(f"a{end}b").splitlines()) == 1


def test_surrogates_and_what_is_too_long_are_no_line() -> None:
    assert on_one_line("a\ud800b") == "a\\ud800b"
    assert is_line("x" * MAX_LINE)
    assert not is_line("x" * (MAX_LINE + 1))
    assert not is_line("a\ud800b")
    assert not is_line(5)
