"""A model that uses tools, until it has an answer: `run_loop`.

In: a model or a session, messages, and functions. Out: events, as they happen. What to ask when is decided by `rounds`,
and what a call gives by `calling`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Unpack

from edge.runtime.llm import LLM
from edge.runtime.messages import MessageLike
from edge.runtime.session import ChatSession
from edge.runtime.settings import GenerationOptions
from edge.runtime.tools.choice import ToolChoiceLike
from edge.tools.calling import run_call
from edge.tools.events import Call, Event
from edge.tools.rounds import MAX_ROUNDS, Rounds, Tools


def run_loop(
    model: LLM | ChatSession,
    messages: str | Sequence[MessageLike],
    tools: Tools = (),
    *,
    max_rounds: int = MAX_ROUNDS,
    tool_choice: ToolChoiceLike = "auto",
    **options: Unpack[GenerationOptions],
) -> Generator[Event, None, None]:
    """Answer messages; run the tools that the model calls, and let it go on with their results.

    model: an LLM, or a session, whose conversation is continued by a question, or replaced by a list of messages, and
    which keeps the tools. tools: functions and `Tool`s, or a mapping from names to them. max_rounds: how many answers
    there may be; no call is allowed in the last. tool_choice: for the first round, as in `LLM.chat`.

    Yields `Text`, `Call` and `Result` as they come, and `Done` at the end. What a tool raises goes to the model as the
    result. Closing the iterator ends the answer. Raises SettingsError and PromptError at once, and later what
    `LLM.chat` raises.
    """
    return _events(Rounds(model, messages, tools, max_rounds, tool_choice, options))


def _events(rounds: Rounds) -> Generator[Event, None, None]:
    while True:
        with closing(rounds.ask()) as chunks:
            for chunk in chunks:
                if (piece := rounds.read(chunk)) is not None:
                    yield piece
        rounds.end_answer()
        if rounds.done is not None:
            yield rounds.done
            return
        for call in rounds.calls:
            yield Call(call)
            text, is_error = run_call(call, rounds.tools)
            yield rounds.result(call, text, error=is_error)
