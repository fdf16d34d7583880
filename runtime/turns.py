"""Turns of a conversation: what belongs together, and may be forgotten together.

In: messages. Out: messages without the oldest turns. Knows nothing about tokens: a caller's function says what fits.

A turn is a question and all that follows it up to the next one: calls of tools, their results, and the answer. What
comes before the first question, apart from system messages, is a turn of its own. System messages are never forgotten,
and with them go the tools that GLM-4 has in one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from edge.runtime.messages import Message

SYSTEM = ("system", "developer")


def turns_of(messages: Sequence[Message]) -> list[list[Message]]:
    """Return the turns, without system messages."""
    turns: list[list[Message]] = []
    for message in messages:
        if message.role in SYSTEM:
            continue
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns


def without_oldest(
    messages: Sequence[Message], fits: Callable[[list[Message]], bool]
) -> tuple[list[Message], tuple[Message, ...]]:
    """Drop the fewest oldest turns so that what is left fits; return that and what was dropped.

    The last turn always stays, whether it fits or not.
    """
    turns = turns_of(messages)

    def left(count: int) -> list[Message]:
        gone = {id(message) for turn in turns[:count] for message in turn}
        return [message for message in messages if id(message) not in gone]

    count = bisect_left(range(max(len(turns) - 1, 0)), True, key=lambda number: fits(left(number)))
    return left(count), tuple(message for turn in turns[:count] for message in turn)
