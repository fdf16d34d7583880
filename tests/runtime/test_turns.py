"""What is forgotten is forgotten as a whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge.runtime.messages import Message, ToolCall
from edge.runtime.turns import turns_of, without_oldest

CALL = Message("assistant", tool_calls=(ToolCall("f", "{}", "c"),))
TURN = [Message("user", "q"), CALL, Message("tool", "r", tool_call_id="c"), Message("assistant", "a")]


def test_a_call_and_its_results_are_one_turn() -> None:
    system = Message("system", "s")
    assert turns_of([system, *TURN, *TURN]) == [TURN, TURN]
    greeting = Message("assistant", "Welcome")
    assert turns_of([system, greeting, *TURN]) == [[greeting], TURN]


@given(st.lists(st.sampled_from("suato"), max_size=20), st.integers(0, 20))
def test_the_oldest_go_first_and_the_last_stays(kinds: list[str], most: int) -> None:
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "o": "observation"}
    messages = [Message(roles[kind], str(i)) for i, kind in enumerate(kinds)]  # type: ignore[arg-type]
    left, dropped = without_oldest(messages, lambda some: len(some) <= most)
    assert [message for message in messages if message in (*left, *dropped)] == messages
    assert len(left) + len(dropped) == len(messages)
    turns = turns_of(messages)
    kept = turns_of(left)
    assert kept == turns[len(turns) - len(kept) :], "whole turns, and the latest"
    assert [message for message in left if message.role == "system"] == [m for m in messages if m.role == "system"]
    assert not turns or kept
    if len(left) > most:
        assert len(kept) <= 1
    elif dropped:
        assert len(left) + len(turns[len(turns) - len(kept) - 1]) > most, "no turn more than needed"
