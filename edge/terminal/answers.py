"""An answer on the screen while it is written, and what is said of it afterwards.

In: the chunks of an answer. Out: its text on stdout; on stderr, thinking, calls of tools, what ended it before its
time, and the line that tells its speed. Knows nothing about conversations.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edge.runtime.chunk import Chunk, FinishReason, Stats
from edge.runtime.settings import GenerationSettings
from edge.runtime.terminal_text import on_one_line
from edge.terminal.status_line import StatusLine
from edge.terminal.thinking import ThinkingView

SHOWN = 200  # characters of a call or its result


@dataclass
class Figures:
    """What is known of an answer: at its end by the model's own count, and before by ours."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    first_s: float | None = None  # when the first token came
    last_s: float = 0.0
    stats: Stats | None = None
    reason: FinishReason | None = None  # none: stopped, or failed
    _in_first: int = field(default=0, repr=False)  # tokens of the first step

    @property
    def tokens_per_second(self) -> float:
        """Speed so far; 0 before the second step."""
        if self.stats is not None:
            return self.stats.tokens_per_second
        seconds = self.last_s - (self.first_s or 0.0)
        return (self.new_tokens - self._in_first) / seconds if seconds > 0 else 0.0

    def take(self, chunk: Chunk, now: float) -> None:
        """Count a chunk."""
        self.new_tokens += len(chunk.token_ids)
        if chunk.token_ids:
            if self.first_s is None:
                self.first_s, self._in_first = now, self.new_tokens
            self.last_s = now
        self.stats, self.reason = chunk.stats or self.stats, chunk.finish_reason or self.reason

    def told(self, num_tokens: int) -> str:
        """Return what /stats prints. num_tokens: of the conversation."""
        conversation = f"{num_tokens} in the conversation"
        if self.stats is None:
            return f"stopped after {self.new_tokens} new, {self.tokens_per_second:.1f} tok/s, {conversation}"
        return f"{figures_of(self.stats)}, {conversation}"


class AnswerView:
    """Shows one answer."""

    def __init__(
        self,
        line: StatusLine,
        context: int,
        prompt_tokens: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        shows_thinking: bool = False,
    ) -> None:
        """context: tokens of the model's. prompt_tokens: about how many the prompt has."""
        self._line, self._context, self._clock = line, context, clock
        self.has_text = False
        self._calls: dict[int, tuple[str, str]] = {}
        self.figures = Figures(prompt_tokens)
        self._thinking = ThinkingView(line, shows=shows_thinking)
        line.show("reading")

    def take(self, chunk: Chunk) -> None:
        """Show a chunk."""
        self.figures.take(chunk, self._clock())
        self.has_text = self.has_text or bool(chunk.text)
        self._thinking.take(chunk)
        self._line.write(chunk.text)
        for piece in chunk.calls:
            name, arguments = self._calls.get(piece.index, ("", ""))
            self._calls[piece.index] = name + piece.name, arguments + piece.arguments
        if chunk.prefill is not None:
            self._line.show(f"reading {chunk.prefill.done:,} of {chunk.prefill.total:,} tokens")
            self.figures.prompt_tokens = chunk.prefill.total
        elif chunk.token_ids and not self._thinking.is_open:
            used = self.figures.prompt_tokens + self.figures.new_tokens
            self._line.show(status_text(self.figures.tokens_per_second, used, self._context))

    def end(self, *, began: bool = True) -> None:
        """End the line of text, if an answer began, and show the calls."""
        self._line.hide()
        self._thinking.end()
        if began and (self.has_text or not self._calls):
            print(flush=True)
        for name, arguments in self._calls.values():
            print(f"-> {name} {clipped(arguments)}".rstrip(), file=sys.stderr)


def figures_of(stats: Stats) -> str:
    """Return the figures of a whole answer in a line."""
    drafts = f", {stats.accepted_tokens} of {stats.drafted_tokens} drafted accepted" if stats.drafted_tokens else ""
    return (
        f"{stats.prompt_tokens} prompt tokens ({stats.cached_tokens} from the cache), {stats.new_tokens} new, "
        f"first after {stats.ttft_ms:.0f} ms, {stats.tokens_per_second:.1f} tok/s{drafts}"
    )


def status_text(tokens_per_second: float, used: int, context: int) -> str:
    """Return the line of figures, in ASCII, for every terminal; the more important ones first."""
    speed = f"{tokens_per_second:.1f} tok/s, " if tokens_per_second else ""
    return f"{speed}{used:,} of {context:,} tokens used ({used / context:.0%})"


def clipped(text: str, most: int = SHOWN) -> str:
    """Return a text for one line or two of the terminal."""
    shown = on_one_line(" ".join(text[: 10 * most].split()))
    return shown if len(shown) <= most else f"{shown[:most]} ..."


def why_it_ended(
    reason: FinishReason | None, new_tokens: int, settings: GenerationSettings, *, drops: bool
) -> str | None:
    """Return what ended an answer before the model did; None if nothing did. drops: whether old turns make room."""
    if reason == "deadline":
        return f"cut after {settings.deadline_s:g} s; --deadline gives it longer"
    if reason != "length":
        return None
    if settings.max_new_tokens is not None and new_tokens >= settings.max_new_tokens:
        return f"cut at {settings.max_new_tokens} tokens; --max-new-tokens allows more"
    return f"cut: the context is full{'' if drops else '; /reset or /undo makes room'}"
