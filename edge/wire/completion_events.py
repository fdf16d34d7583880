"""A streamed answer of /v1/completions.

In: chunks of each choice. Out: `text_completion` events, the last of each choice with its finish reason. Knows nothing
about sockets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edge.runtime.chunk import Chunk, Stats
from edge.runtime.tokenizer import Tokenizer
from edge.runtime.vision.progress import PictureProgress
from edge.wire.answers import Head, JsonBody, LiveTimes, beginning, ending, nothing_in_time, timings, usage
from edge.wire.chat_events import DONE
from edge.wire.errors import ErrorAnswer
from edge.wire.events import Event
from edge.wire.logprobs import ShownEntries
from edge.wire.old_logprobs import Echo, OldLists
from edge.wire.settings import RequestSettings


class CompletionEvents:
    """The events of one request."""

    def __init__(
        self, head: Head, settings: RequestSettings, tokenizer: Tokenizer, echoed: Sequence[Echo], num_prompts: int
    ) -> None:
        """echoed: what each choice begins with; empty if nothing is."""
        self._head, self._settings = head, settings
        self._echoed, self._num_prompts = echoed, num_prompts
        self._stats: dict[int, Stats | None] = {}
        self._late: list[Event] = []  # ends of choices whose deadline passed before their first token
        count = settings.n * num_prompts
        wanted = settings.options.get("logprobs") is not None
        self._entries = [ShownEntries(tokenizer, with_stop_id=True) for _ in range(count)] if wanted else None
        self._lists = [OldLists(tokenizer) for _ in range(count)]
        self._to_echo = set(range(count)) if wanted and echoed else set[int]()  # later, with log-probabilities
        self._begun: set[int] = set()
        self._times = [LiveTimes() for _ in range(count)] if settings.timings else None

    def begin(self) -> Iterator[Event]:
        """Yield the echoed prompts, unless log-probabilities of them are to come."""
        for index, echo in enumerate(self._echoed):
            if index not in self._to_echo:
                yield self._event(index, echo.text, {})

    def looking(self, progress: PictureProgress) -> Iterator[Event]:  # noqa: ARG002  # this protocol has no word for it
        """Pings say that the model is at work."""
        return iter(())

    def push(self, index: int, chunk: Chunk) -> Iterator[Event]:
        """Yield what a chunk becomes."""
        if index in self._to_echo and (chunk.prompt_logprobs or chunk.finish_reason is not None):
            self._to_echo.remove(index)
            echo = self._echoed[index]
            yield self._event(index, echo.text, {"logprobs": self._lists[index].prompt(echo, chunk.prompt_logprobs)})
        more: JsonBody = {}
        entries = None if self._entries is None else self._entries[index].push(chunk)
        if entries:
            more["logprobs"] = self._lists[index].answer(entries)
        if self._settings.token_ids and chunk.token_ids:
            more["token_ids"] = list(chunk.token_ids)
        if chunk.token_ids:
            self._begun.add(index)
        live = {} if self._times is None else self._times[index].push(chunk)
        if chunk.text or more:
            event = self._event(index, chunk.text, more)
            if live and isinstance(event.data, dict):
                event.data["timings"] = live
            yield event
        if chunk.finish_reason is not None:
            self._stats[index] = chunk.stats
            event = self._event(index, "", ending(chunk.finish_reason))
            if chunk.stats is not None and self._head.measured and isinstance(event.data, dict):
                event.data["timings"] = timings(chunk.stats)
            if chunk.finish_reason == "deadline" and index not in self._begun:
                self._late.append(event)
            else:
                yield event

    def end(self) -> Iterator[Event]:
        """Yield the usage, if it was asked for, and the end."""
        if len(self._late) == self._settings.n * self._num_prompts:
            raise nothing_in_time()
        yield from self._late
        if self._settings.include_usage:
            stats = [found for _, found in sorted(self._stats.items())]
            told = usage(stats, self._num_prompts, measured=self._head.measured)
            yield Event({**self._common(), "choices": [], "usage": told})
        yield DONE

    def fail(self, told: ErrorAnswer) -> Iterator[Event]:
        """Yield the error alone: without [DONE], clients raise it."""
        yield Event(told.to_dict())

    def _event(self, index: int, text: str, more: JsonBody) -> Event:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None, **more}
        usage_of_none = {"usage": None} if self._settings.include_usage else {}
        return Event({**self._common(), "choices": [choice], **usage_of_none})

    def _common(self) -> JsonBody:
        return {**beginning("text_completion", self._head), "system_fingerprint": self._head.fingerprint}
