"""Calls of an answer, run on this machine, and the answers to their results, until one calls nothing.

In: tools, and a session whose last answer called some. Out: further answers on the terminal, and a line for each call's
result. Knows nothing about what a tool does. Whatever happens, no call is left without a result: a template would
refuse the next message.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.runtime.messages import ToolCall, result_of
from edge.runtime.session import ChatSession
from edge.runtime.tools.declared import JsonObject
from edge.runtime.vision.progress import OnPicture
from edge.terminal.answering import Answering, Chunks, Options
from edge.terminal.answers import clipped
from edge.terminal.reader import Reader
from edge.tools.calling import run_call

if TYPE_CHECKING:
    from edge.tools.tool import Tool

MAX_ROUNDS = 10
_STOPPED = "[stopped by the user]"
_ENOUGH = f"[not run: {MAX_ROUNDS} rounds of calls are the limit]"


class ToolRounds:
    """The tools of a chat."""

    def __init__(self, tools: Sequence[Tool], native: frozenset[str]) -> None:
        """native: types of tools that the model's template describes itself."""
        self._tools = {tool.name: tool for tool in tools}
        self._native = native

    def __bool__(self) -> bool:
        return bool(self._tools)

    @property
    def declarations(self) -> list[JsonObject]:
        """What the model is told."""
        return [tool.declared_to(self._native) for tool in self._tools.values()]

    def told(self) -> list[str]:
        """Return a line for each tool."""
        lines = []
        for name, tool in self._tools.items():
            description = str(tool.declaration.get("function", {}).get("description", ""))
            lines.append(f"{name}: {clipped(description, 60)}")
        return lines

    def answer(self, session: ChatSession, answering: Answering, reader: Reader, options: Options) -> bool:
        """Run what the last answer called, and show the answers to the results; return False if one failed."""
        try:
            for _ in range(MAX_ROUNDS):
                if not session.pending:
                    return True
                if answering.stopped:
                    break
                results = [(call, self.result(call)) for call in session.pending]
                more = sum(len(session.llm.tokenizer.encode(text, parse_special=False)) for _, text in results)

                def start(on_picture: OnPicture) -> Chunks:
                    return session.send_results(results, on_picture=on_picture, **options)  # noqa: B023  # it is called before the next round

                if not answering.show(start, reader, more):
                    return False
            return True
        except KeyboardInterrupt:
            if not reader.is_terminal:
                raise
            print("(stopped)", file=sys.stderr)
            answering.stopped = True
            return True
        finally:
            if session.pending:
                _close(session, _STOPPED if answering.stopped else _ENOUGH)

    def result(self, call: ToolCall) -> str:
        """Run a call; whatever goes wrong is told to the model."""
        text, _ = run_call(call, self._tools)
        print(f"<- {clipped(text)}".rstrip(), file=sys.stderr, flush=True)
        return text


def _close(session: ChatSession, text: str) -> None:
    """Give each call that waits a result, without asking for an answer."""
    session.messages += [result_of(call, text) for call in session.pending]
