"""What happens while a model uses tools, as a program reads it.

In: nothing. Out: frozen records. Knows nothing about how calls are found or run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge.runtime.chunk import Answer
from edge.runtime.messages import Message, ToolCall

EndedBy = Literal["answer", "max_rounds", "cut"]


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of what the model says to people."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """The model has called a tool, which runs when the next event is asked for."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class Result:
    """What the model is told of a call."""

    call: ToolCall
    text: str
    error: bool  # the text says what went wrong


@dataclass(frozen=True, slots=True)
class Done:
    """The last event.

    ended_by: "answer" if the model called nothing more; "max_rounds" if its last answer was not allowed to call; "cut"
    if a call was not finished, because of a limit that `answer.finish_reason` names.
    """

    messages: tuple[Message, ...]  # the whole conversation, with calls, results and the last answer
    answers: tuple[Answer, ...]  # one for each round
    ended_by: EndedBy

    @property
    def answer(self) -> Answer:
        """The last one."""
        return self.answers[-1]

    @property
    def rounds(self) -> int:
        """How many times the model was asked."""
        return len(self.answers)


Event = Text | Call | Result | Done
