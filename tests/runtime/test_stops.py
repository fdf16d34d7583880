"""Stop strings: the text before the first one is shown, whatever the pieces are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.runtime.stops import StopStrings


def run(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher = StopStrings(stops)
    shown = "".join(matcher.push(piece) for piece in pieces)
    return shown + matcher.finish(), matcher.stopped


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_equals_cutting_the_whole_text(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown, stopped = run(pieces, stops)
    # The first stop string to be complete wins; of those that complete in the same piece, the one that begins first.
    if not any(stop in text for stop in stops):
        assert (shown, stopped) == (text, False)
    else:
        assert stopped
        assert text.startswith(shown)
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
        assert not any(stop in shown for stop in stops)


def test_text_is_held_only_while_a_stop_may_follow() -> None:
    matcher = StopStrings(["END"])
    assert matcher.push("abcE") == "abc"
    assert matcher.push("N") == ""
    assert matcher.push("x") == "ENx"
    assert matcher.push("EN") == ""
    assert matcher.push("D and more") == ""
    assert matcher.stopped
    assert matcher.push("anything") == ""
    assert matcher.finish() == ""


def test_overlapping_prefixes() -> None:
    assert run(["a", "a", "b", "aab", "c"], ["aabc"]) == ("aab", True)


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(AssertionError, match="empty"):
        StopStrings(["x", ""])
