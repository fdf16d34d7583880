"""A conversation is found again by its text, whoever sends it; the memory is bounded."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from edge.runtime.markup import MarkedText
from edge.runtime.produced_ids import ProducedIds


def plain(text: MarkedText) -> list[int]:
    return [ord(char) for char in text]


@given(st.lists(st.text("ab", max_size=6), max_size=6), st.text("ab", max_size=12))
def test_the_longest_remembered_beginning_is_used(texts: list[str], asked: str) -> None:
    memory = ProducedIds()
    for text in texts:
        memory.remember(MarkedText(text), [-len(text)])
    begin = max((text for text in texts if text and asked.startswith(text)), key=len, default="")
    expected = ([-len(begin)] if begin else []) + plain(MarkedText(asked[len(begin) :]))
    assert memory.encode(MarkedText(asked), plain) == expected


def test_the_last_ids_of_a_text_count() -> None:
    memory = ProducedIds()
    memory.remember(MarkedText("ab"), [1, 2])
    memory.remember(MarkedText("ab"), [3])
    assert memory.encode(MarkedText("abc"), plain) == [3, ord("c")]
    assert len(memory) == 1


def test_what_was_used_longest_ago_is_dropped() -> None:
    by_number, by_size = ProducedIds(max_entries=2), ProducedIds(max_tokens=5)
    for memory in (by_number, by_size):
        memory.remember(MarkedText("a"), [1, 1])
        memory.remember(MarkedText("b"), [2, 2])
        assert memory.encode(MarkedText("a"), plain) == [1, 1]
        memory.remember(MarkedText("c"), [3, 3])
        assert [memory.encode(MarkedText(text), plain) for text in "abc"] == [[1, 1], [ord("b")], [3, 3]]
    by_size.remember(MarkedText("d"), [0] * 6)
    assert len(by_size) == 2, "what is too large alone takes nobody's place"


def test_threads_share_it() -> None:
    memory = ProducedIds(max_entries=50)

    def work(number: int) -> None:
        for i in range(300):
            text = MarkedText(f"{number}:{i}")
            memory.remember(text, [number, i])
            assert memory.encode(text, plain) in ([number, i], plain(text))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(memory) == 50
    assert sum(memory._lengths.values()) == 50
    assert memory._num_tokens == 100
