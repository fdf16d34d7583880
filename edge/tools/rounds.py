"""The rounds of a conversation in which a model uses tools: what to ask next, and what became of it.

In: a session, tools, and the results of calls. Out: chunks to read, events, and at last a `Done`. Runs nothing by
itself, so that the same rounds serve a loop that blocks and one that does not. The prompt of a round continues that of
the round before, and so nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edge.runtime.chunk import Answer, Chunk
from edge.runtime.errors import SettingsError, shown
from edge.runtime.llm import LLM
from edge.runtime.messages import MessageLike, ToolCall
from edge.runtime.rules import Whole, check_value
from edge.runtime.session import ChatSession
from edge.runtime.settings import GenerationOptions
from edge.runtime.stream import answer_of
from edge.runtime.tools.choice import ToolChoiceLike, tool_choice_of, tool_name
from edge.runtime.tools.declared import checked_tools
from edge.tools.events import Done, EndedBy, Result, Text
from edge.tools.tool import Tool

MAX_ROUNDS = 10
MAX_RESULT = 16_000  # characters of a result that the model is shown
RESULT_SHARE = 4  # a result takes a quarter of the context at most

Function = Callable[..., Any]  # Any: functions of every kind
Tools = Mapping[str, Function | Tool] | Sequence[Function | Tool]


class Rounds:
    """One use of the loop. `ask`, read its chunks with `read`, and give `results` to `calls`, until there is `done`."""

    def __init__(
        self,
        model: LLM | ChatSession,
        messages: str | Sequence[MessageLike],
        tools: Tools,
        max_rounds: int,
        tool_choice: ToolChoiceLike,
        options: GenerationOptions,
    ) -> None:
        """Raises SettingsError and PromptError."""
        if not isinstance(model, LLM | ChatSession):
            raise SettingsError(f"the model is {shown(model)}, expected an LLM or a ChatSession")
        self._max_rounds: int = check_value("max_rounds", Whole(2, 1000), max_rounds)
        self._session = model if isinstance(model, ChatSession) else ChatSession(model)
        found = named_tools(tools)
        native = self._session.llm.tool_format.native
        declarations = checked_tools([tool.declared_to(native) for tool in found])
        tool_choice_of(tool_choice, declarations)
        self.tools = dict(zip(map(tool_name, declarations), found, strict=True))
        self.done: Done | None = None
        self.calls: tuple[ToolCall, ...] = ()  # to run now
        self._tool_choice, self._options = tool_choice, options
        self._results: list[tuple[ToolCall, str]] = []
        self._chunks: list[Chunk] = []
        self._answers: list[Answer] = []
        self._question = messages if isinstance(messages, str) else None
        if not isinstance(messages, str):
            self._session.load(messages)
        self._session.tools = declarations

    def ask(self) -> Generator[Chunk, None, None]:
        """Begin the next answer."""
        number = len(self._answers)
        choice = self._tool_choice if number == 0 else "none" if number == self._max_rounds - 1 else "auto"
        self._chunks = []
        if self._results:
            results, self._results = self._results, []
            return self._session.send_results(results, tool_choice=choice, **self._options)
        if self._question is not None:
            return self._session.send(self._question, tool_choice=choice, **self._options)
        return self._session.answer(tool_choice=choice, **self._options)

    def read(self, chunk: Chunk) -> Text | None:
        """Take a chunk of an answer; return what a reader is to see of it."""
        self._chunks.append(chunk)
        return Text(chunk.text) if chunk.text else None

    def end_answer(self) -> None:
        """Decide what comes after an answer whose chunks were all read: `calls`, or `done`."""
        answer = answer_of(self._chunks)
        self._answers.append(answer)
        if answer.finish_reason == "tool_calls":
            self.calls = answer.tool_calls
            return
        self.calls = ()
        ended: EndedBy = (
            "cut" if answer.tool_calls else "max_rounds" if len(self._answers) == self._max_rounds else "answer"
        )
        self.done = Done(tuple(self._session.messages), tuple(self._answers), ended)

    def result(self, call: ToolCall, text: str, *, error: bool) -> Result:
        """Take the result of a call; return it as the model will see it."""
        text = self._bounded(text.encode("utf-8", "replace").decode())  # a surrogate cannot be encoded
        self._results.append((call, text))
        return Result(call, text, error)

    def _bounded(self, text: str) -> str:
        """Return a text, or its beginning and how much was cut."""
        llm = self._session.llm
        kept, room = text[:MAX_RESULT], (llm.engine.info.longest_prompt + 1) // RESULT_SHARE
        while (tokens := len(llm.tokenizer.encode(kept, parse_special=False))) > room:
            kept = kept[: len(kept) * room // tokens]
        return text if len(kept) == len(text) else f"{kept}\n[cut: {len(text) - len(kept)} more characters]"


def named_tools(tools: Tools) -> list[Tool]:
    """Return tools, made of functions where they are functions. Raises SettingsError."""
    if isinstance(tools, str | bytes) or not isinstance(tools, Mapping | Sequence):
        raise SettingsError(
            f"tools is {shown(tools)}, expected a list of functions and Tools, or a mapping from names to them",
            param="tools",
        )
    named = tools.items() if isinstance(tools, Mapping) else [(None, tool) for tool in tools]
    return [_tool(tool, name) for name, tool in named]


def _tool(given: Function | Tool, name: str | None) -> Tool:
    if not isinstance(given, Tool):
        from edge.tools.function import tool_of  # needs a package, which finished tools do not

        return tool_of(given, name=name)
    if name is None or name == given.name:
        return given
    function = {**given.declaration["function"], "name": name}
    return replace(given, declaration={**given.declaration, "function": function})
