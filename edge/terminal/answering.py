"""Answers of a session, one after another, shown as they are written; Ctrl-C and refusals end one and not the chat.

In: a session, and what starts an answer. Out: the answer on the terminal, what is said about it, and its figures. Knows
no commands.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TextIO

from edge.runtime.chunk import Chunk, Stats
from edge.runtime.errors import ContextLengthError, GenerationError, PromptError
from edge.runtime.session import ChatSession
from edge.runtime.settings import GenerationSettings
from edge.runtime.vision.progress import OnPicture, PictureProgress
from edge.terminal.answers import AnswerView, Figures, clipped, status_text, why_it_ended
from edge.terminal.looking import Looking
from edge.terminal.reader import Reader
from edge.terminal.status_line import StatusLine
from edge.terminal.typed_ahead import TypedAhead

Chunks = Generator[Chunk, None, None]
Start = Callable[[OnPicture], Chunks]  # begins an answer, once its pictures were looked at
Options = Mapping[str, Any]  # Any: keywords of an answer


class _Stopped(Exception):
    """Somebody typed /stop while a picture was looked at."""


class Answering:
    """Shows answers."""

    def __init__(
        self,
        session: ChatSession,
        settings: GenerationSettings,
        unguarded: Callable[[TextIO], TextIO],
        *,
        verbose: bool = False,
        shows_thinking: bool = False,
    ) -> None:
        """settings: of each answer, for what is said about it. verbose: its figures, too."""
        self._session, self._settings, self._unguarded = session, settings, unguarded
        self._verbose, self._shows_thinking = verbose, shows_thinking
        self.figures: Figures | None = None  # of the last answer
        self.num_tokens = 0  # of the conversation
        self.stopped = False  # the last answer, by somebody
        self._prefixes: set[Path] = set()  # those of which it is known whether they are of use

    @property
    def context(self) -> int:
        """The most tokens that a conversation can have."""
        return self._session.llm.engine.info.max_context

    def show(self, start: Start, reader: Reader, more: int = 0, pictures: Sequence[str] = ()) -> bool:
        """Show the answer that `start` begins, and return whether there is one.

        more: about how many tokens its prompt has beyond the conversation. pictures: names of those in all of it.
        """
        line, ahead = StatusLine(self._unguarded), TypedAhead(reader)
        prompt_tokens = self.num_tokens + more
        view = AnswerView(line, self.context, prompt_tokens, shows_thinking=self._shows_thinking)
        # Where old turns may be dropped, it is not known which pictures are left.
        looking = Looking(pictures if prompt_tokens <= self.context else (), line)

        def look(progress: PictureProgress) -> None:
            looking(progress)
            if ahead.stops():
                raise _Stopped

        dropped = self._session.dropped_messages
        self.stopped = False
        try:
            with closing(start(look)) as chunks:
                for chunk in chunks:
                    view.take(chunk)
                    if ahead.stops():
                        self.stopped = True
                        break
        except KeyboardInterrupt:
            if not reader.is_terminal:
                raise
            self.stopped = True
        except _Stopped:
            self.stopped = True
        except GenerationError as error:
            view.end(began=view.has_text)
            self._tell(f"edge: {error}{self._advice(error)}")
            return False
        finally:
            line.hide()
        if self.stopped and view.figures.first_s is None:  # nothing of it is in the conversation
            self._tell("(stopped)")
            return False
        view.end()
        self.figures = view.figures
        self._tell_prefix(view.figures.stats)
        self.num_tokens = self._session.num_tokens
        if self.stopped:
            self._tell("(stopped)")
        elif why := why_it_ended(view.figures.reason, view.figures.new_tokens, self._settings, drops=self._drops):
            self._tell(f"({why})")
        if dropped := self._session.dropped_messages - dropped:
            self._tell_dropped(dropped)
        if self._verbose:
            self._tell(f"({view.figures.told(self.num_tokens)})")
        return True

    def recount(self) -> None:
        """Count the tokens of the conversation, after it was changed by something else than an answer."""
        session = self._session
        self.num_tokens = 0
        if session.messages:
            with suppress(PromptError):  # a template may refuse what is not yet a conversation
                ids = session.llm.encode_chat(session.messages, tools=session.tools, add_generation_prompt=False)
                self.num_tokens = len(ids)

    @property
    def status(self) -> str:
        """The line below the prompt."""
        speed = 0.0 if self.figures is None else self.figures.tokens_per_second
        return status_text(speed, self.num_tokens, self.context)

    @property
    def _drops(self) -> bool:
        return bool(self._session.context_policy == "drop-oldest")

    def _advice(self, error: GenerationError) -> str:
        full = isinstance(error, ContextLengthError) and self._session.num_turns > 0 and not self._drops
        return "; or /reset or /undo, or --context-policy drop-oldest" if full else ""

    def _tell_prefix(self, stats: Stats | None) -> None:
        """Of each prefix that was loaded, the first prompt that is most like it says whether it is of use."""
        match = None if stats is None else stats.prefix
        if match is None or match.path in self._prefixes:
            return
        self._prefixes.add(match.path)
        if not match.whole:
            self._tell(f"edge: {match.told}")

    def _tell_dropped(self, count: int) -> None:
        first = next((m.text for m in self._session.last_dropped if m.role == "user"), "")
        what = f"the oldest {count} message{'s' * (count > 1)}"
        self._tell(f"edge: the context was full: {what} dropped, from {clipped(first, 40)!r} on")

    @staticmethod
    def _tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)
