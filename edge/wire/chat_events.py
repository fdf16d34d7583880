"""A streamed answer of /v1/chat/completions.

In: chunks of each choice. Out: `chat.completion.chunk` events. A role comes first, as soon as it is known whether the
answer is text or a call; then deltas, one event with the finish reason, and the usage if it was asked for. Knows
nothing about sockets.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from edge.runtime.chunk import CallPiece, Chunk, Prefill, Stats
from edge.runtime.tokenizer import Tokenizer
from edge.runtime.vision.progress import PictureProgress
from edge.wire.answers import (
    Head,
    JsonBody,
    LiveTimes,
    beginning,
    ending,
    nothing_in_time,
    thought_tokens,
    timings,
    usage,
)
from edge.wire.errors import ErrorAnswer
from edge.wire.events import Event
from edge.wire.logprobs import ShownEntries, chat_logprobs
from edge.wire.settings import RequestSettings

DONE = Event("[DONE]")


class ChatEvents:
    """The events of one request."""

    def __init__(self, head: Head, settings: RequestSettings, tokenizer: Tokenizer) -> None:
        self._head, self._settings, self._tokenizer = head, settings, tokenizer
        self._started = time.perf_counter()
        self._timings: JsonBody = {}  # so far, of the choice whose chunk is told
        self._begun: set[int] = set()
        self._ids: list[list[int]] = [[] for _ in range(settings.n)]  # to tell how many are thoughts
        self._thought: set[int] = set()  # choices that did
        self._stats: dict[int, Stats | None] = {}
        self._late: list[list[Event]] = []  # ends of choices whose deadline passed before their first token
        wanted = settings.options.get("logprobs") is not None
        self._times = [LiveTimes() for _ in range(settings.n)] if settings.timings else None
        self._entries = [ShownEntries(tokenizer) for _ in range(settings.n)] if wanted else None

    def begin(self) -> Iterator[Event]:
        """Nothing is known before the first token."""
        return iter(())

    def looking(self, progress: PictureProgress) -> Iterator[Event]:
        """Yield how far a picture is looked at, if that was asked for."""
        if self._settings.progress:
            yield self._event([], picture_progress=_picture_progress(progress))

    def push(self, index: int, chunk: Chunk) -> Iterator[Event]:
        """Yield what a chunk becomes."""
        if self._times is not None:
            self._timings = self._times[index].push(chunk)
        if chunk.prefill is not None and self._settings.progress and not self._begun:
            yield self._event([], prompt_progress=self._progress(chunk.prefill))
        self._ids[index] += chunk.token_ids
        is_over = chunk.finish_reason is not None and chunk.finish_reason != "deadline"
        if chunk.reasoning or chunk.text or chunk.calls or is_over:
            yield from self._role(index, is_call=bool(chunk.calls) and not chunk.text)
        entries = None if self._entries is None else self._entries[index].push(chunk)
        more: JsonBody = {}
        if entries:
            more["logprobs"] = chat_logprobs(entries, self._tokenizer)
        if self._settings.token_ids and chunk.token_ids:
            more["token_ids"] = list(chunk.token_ids)
        if chunk.reasoning:
            self._thought.add(index)
            yield self._choice(index, {"reasoning_content": chunk.reasoning}, {} if chunk.text else more)
            more = more if chunk.text else {}
        if chunk.text or (more and not chunk.calls):
            yield self._choice(index, {"content": chunk.text} if chunk.text else {}, more)
            more = {}
        for piece in chunk.calls:
            yield self._choice(index, {"tool_calls": [_call_delta(piece)]}, more)
            more = {}
        if chunk.finish_reason is not None:
            yield from self._finish(index, chunk)

    def end(self) -> Iterator[Event]:
        """Yield the usage, if it was asked for, and the end."""
        if len(self._late) == self._settings.n:
            raise nothing_in_time()
        for events in self._late:
            yield from events
        if self._settings.include_usage:
            stats = [found for _, found in sorted(self._stats.items())]
            thought = sum(thought_tokens(self._ids[index], self._tokenizer) for index in self._thought)
            told = usage(stats, measured=self._head.measured, thought=thought)
            yield Event({**self._common(), "choices": [], "usage": told})
        yield DONE

    def fail(self, told: ErrorAnswer) -> Iterator[Event]:
        """Yield the error alone: without [DONE], clients raise it."""
        yield Event(told.to_dict())

    def _finish(self, index: int, chunk: Chunk) -> Iterator[Event]:
        assert chunk.finish_reason is not None
        self._stats[index] = chunk.stats
        how = ending(chunk.finish_reason)
        is_late = chunk.finish_reason == "deadline" and index not in self._begun
        told = {"timings": timings(chunk.stats)} if chunk.stats is not None and self._head.measured else {}
        event = self._event([{"index": index, "delta": {}, "logprobs": None, **how}], **told)
        if not is_late:
            yield event
        else:
            self._late.append([*self._role(index, is_call=False), event])

    def _role(self, index: int, *, is_call: bool) -> Iterator[Event]:
        if index not in self._begun:
            self._begun.add(index)
            yield self._choice(index, {"role": "assistant", "content": None if is_call else ""}, {})

    def _choice(self, index: int, delta: JsonBody, more: JsonBody) -> Event:
        return self._event([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}])

    def _event(self, choices: list[JsonBody], **more: JsonBody) -> Event:
        usage_of_none = {"usage": None} if self._settings.include_usage else {}
        if self._timings and choices:
            more = {"timings": self._timings, **more}
        return Event({**self._common(), "choices": choices, **usage_of_none, **more})

    def _common(self) -> JsonBody:
        head = self._head
        common = {**beginning("chat.completion.chunk", head), "system_fingerprint": head.fingerprint}
        if head.dropped_messages:
            common["edge"] = {"dropped_messages": head.dropped_messages}
        return common

    def _progress(self, prefill: Prefill) -> JsonBody:
        """Return how far the prompt is read, under llama.cpp's names."""
        ms = round((time.perf_counter() - self._started) * 1000)
        return {"total": prefill.total, "processed": prefill.done, "time_ms": ms}


def _picture_progress(progress: PictureProgress) -> JsonBody:
    left = progress.seconds_left
    told = None if left is None else round(left, 1)
    return {"processed": progress.done, "total": progress.total, "seconds_left": told}


def _call_delta(piece: CallPiece) -> JsonBody:
    """Return a piece of a call; only the first has id, type and name."""
    if piece.name:
        function = {"name": piece.name, "arguments": piece.arguments}
        return {"index": piece.index, "id": piece.id, "type": "function", "function": function}
    return {"index": piece.index, "function": {"arguments": piece.arguments}}
