"""One answer in a conversation, read piece by piece: reasoning, text and calls of tools apart.

In: a request for a conversation, and what to look for in its answer. Out: chunks whose text is meant for people and
whose calls are meant for programs. Knows nothing about templates.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from edge.runtime.chunk import Chunk, FinishReason
from edge.runtime.messages import Message
from edge.runtime.request import Request
from edge.runtime.runner import Runner
from edge.runtime.stream import Stream, answer_of
from edge.runtime.thinking import ThinkingReader

Remember = Callable[[str, list[int], Message], None]  # the text as written, its ids, and the message it became

logger = logging.getLogger(__name__)


class ChatStream(Stream):
    """A `Stream` of an answer to messages. What was read of it is remembered for the conversation's next turn."""

    def __init__(self, request: Request, runner: Runner, reader: ThinkingReader, remember: Remember) -> None:
        super().__init__(request, runner)
        self._reader, self._remember = reader, remember
        self._written = ""
        self._read: list[Chunk] = []
        self._ended = False

    @property
    def num_tokens(self) -> int:
        """How many tokens prompt and answer have so far."""
        return self._request.num_prompt_tokens + sum(len(chunk.token_ids) for chunk in self._read)

    @property
    def message(self) -> Message:
        """What was read so far, as a message."""
        return answer_of(self._read).message

    def __next__(self) -> Chunk:
        """Return the next chunk. Raises GenerationError and DeviceError."""
        try:
            chunk = super().__next__()
            self._written += chunk.text
            found = self._reading(chunk)
            self._read.append(found)
        except BaseException:  # also the end, and Ctrl-C in between
            self.close()
            raise
        if chunk.finish_reason is not None and self._news is None:
            self._end()
        return found

    async def __anext__(self) -> Chunk:
        """Return everything that came since the last time, as `Stream` does."""
        chunk = await super().__anext__()
        if chunk.finish_reason is not None:  # before its reader can send the next turn, but not in the event loop
            await asyncio.to_thread(self._end)
        return chunk

    def close(self) -> None:
        """Stop generating and deliver nothing more. May be called from any thread."""
        super().close()
        if self._news is None or not self._news.call_elsewhere(self._end):
            self._end()

    def _reading(self, chunk: Chunk) -> Chunk:
        read = self._reader.push(chunk.text)
        text, calls, reasoning, reason = read.text, read.calls, read.reasoning, chunk.finish_reason
        if reason is not None:
            was_cut = reason != "stop" or (chunk.stopped_by is not None and chunk.stopped_by.text is not None)
            last = self._reader.finish(was_cut=was_cut)
            text, calls, reasoning = text + last.text, calls + last.calls, reasoning + last.reasoning
            reason = _finish_reason(reason, is_call=last.is_call)
        if (text, calls, reason) == (chunk.text, chunk.calls, chunk.finish_reason) and not reasoning:
            return chunk
        return replace(chunk, text=text, calls=calls, reasoning=reasoning, finish_reason=reason)

    def _end(self) -> None:
        """Remember the answer, once. That takes as long as rendering the conversation does.

        One that was thought over is not remembered: the next prompt has what followed the thinking, at another place.
        """
        if self._ended:
            return
        self._ended = True
        ids = [token_id for chunk in self._read for token_id in chunk.token_ids]
        if not ids or self._reader.has_thought:
            return
        try:
            self._remember(self._written, ids, self.message)
        except Exception:  # the answer is whole without it
            logger.exception("an answer could not be remembered")


def _finish_reason(reason: FinishReason, *, is_call: bool) -> FinishReason:
    return "tool_calls" if is_call and reason in ("stop", "length") else reason
