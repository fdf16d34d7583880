"""Lines from a terminal by prompt_toolkit: several lines at once, keys, completion, a line of figures below.

In: the terminal, the history, and what the line below shows. Out: one text after another. Imports prompt_toolkit, so it
is imported when a terminal wants it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit import history as histories
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

from edge.runtime.unicode import check_typed
from edge.terminal.completing import completed
from edge.terminal.history import History
from edge.terminal.plain_reader import WHAT, waiting_line
from edge.terminal.slash import is_open

_COMPLETE_ROWS = 4  # kept free below the prompt for what Tab offers


class PromptReader:
    """Reads from a terminal whose cursor can be moved."""

    is_terminal = edits = True

    def __init__(self, history: History, status: Callable[[], str], unguarded: Callable[[TextIO], TextIO]) -> None:
        self._waiting: deque[str | None] = deque()
        self._interrupted = False  # by Ctrl-C on an empty line, just now
        output = create_output(unguarded(sys.stdout if sys.stdout.isatty() else sys.stderr))
        source = create_input(sys.stdin)

        def below() -> str:
            told = " Ctrl-D or /exit leaves" if self._interrupted else f" {status()}"
            return told[: output.get_size().columns - 1]

        self._session: PromptSession[str] = PromptSession(
            "> ",
            input=source,
            output=output,
            history=_Kept(history),
            multiline=True,
            prompt_continuation=". ",
            completer=_Completer(),
            complete_while_typing=False,
            reserve_space_for_menu=_COMPLETE_ROWS,
            key_bindings=self._keys(),
            bottom_toolbar=below,
        )
        # A terminal that does not say where its cursor is has no line below, and needs no warning about it.
        self._session.app.renderer.cpr_not_supported_callback = None
        self._question: PromptSession[str] = PromptSession(input=source, output=output)

    def read(self, default: str = "") -> str:
        """Return the next text."""
        if self._waiting:
            return waiting_line(self._waiting)
        self._interrupted = False
        return check_typed(self._session.prompt(default=default), WHAT)

    def confirmed(self, question: str) -> bool:
        """Whether the answer begins with a y."""
        try:
            return self._question.prompt(f"{question} [y/N] ").strip().lower().startswith("y")
        except (KeyboardInterrupt, EOFError):
            return False

    def put(self, line: str | None) -> None:
        """Read this line next; None is the end."""
        self._waiting.append(line)

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def send(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if is_open(buffer.text):
                buffer.insert_text("\n")
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-c")
        def clear(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            self._interrupted = not buffer.text
            buffer.reset()

        return keys


class _Kept(histories.History):
    """Our history, as prompt_toolkit wants one: the newest line first."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self._history = history

    def load_history_strings(self) -> Iterable[str]:
        return reversed(self._history.lines)

    def append_string(self, string: str) -> None:
        if self._history.add(string):
            self._loaded_strings.insert(0, string)

    def store_string(self, string: str) -> None:
        raise AssertionError(string)  # append_string stores


class _Completer(Completer):
    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:  # noqa: ARG002
        end, texts = completed(document.text_before_cursor)
        folder = end.rpartition("/")[0]
        for text in texts:  # of a path, the list shows what is new
            yield Completion(text, -len(end), display=text[len(folder) + 1 :] if folder else text)
