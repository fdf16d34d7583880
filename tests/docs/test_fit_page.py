"""docs/fit.md shows what `edge fit` prints."""

from __future__ import annotations

from tests.docs.fit_page import PAGE, made


def test_the_page_is_what_the_program_gives() -> None:
    """`python -m tests.docs.fit_page` makes it."""
    text = PAGE.read_text(encoding="utf-8")
    assert made(text) == text
