"""One answer, read piece by piece, and several read to their ends.

In: a request and the runner that advances it. Out: chunks, or an `Answer`. Knows nothing about models or messages.

A stream can be read in two ways: by iterating, which computes only while a reader waits, or by `async for`, which
computes to the end whether or not its reader is quick.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

from edge.runtime.async_news import AsyncNews
from edge.runtime.chunk import Answer, CallPiece, Chunk, joined
from edge.runtime.errors import EdgeError
from edge.runtime.messages import ToolCall
from edge.runtime.request import Request
from edge.runtime.runner import Runner


class Stream:
    """One answer as an iterator of chunks. Closing it, or leaving its `with` block, ends the answer at once."""

    def __init__(self, request: Request, runner: Runner) -> None:
        self._request = request
        self._runner = runner
        self._news: AsyncNews | None = None  # for a reader in an event loop
        request.reader = weakref.ref(self)  # a step drops requests whose reader is gone

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        """Return the next chunk, after as many steps as it takes. Raises GenerationError and DeviceError."""
        request = self._request
        if request.cancelled:
            raise StopIteration
        try:
            self._runner.advance(request)
            if request.chunks and not request.cancelled:
                return request.chunks.popleft()
            if request.error is not None and not request.cancelled:
                raise request.error
        except BaseException:  # also Ctrl-C after popleft: a lost chunk has to be the last
            self.close()
            raise
        raise StopIteration

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Chunk:
        """Return everything that came since the last time, as one chunk; errors as in `__next__`.

        A task that is cancelled while it waits here ends the answer.
        """
        if self._news is None:
            self._news = AsyncNews(self._request, self._runner)
        try:
            await self._news.wait()
            chunks = [self._next_or_end()]
            while self._request.chunks and chunks[-1].finish_reason is None:
                chunks.append(self._next_or_end())
        except BaseException:
            self.close()
            raise
        return joined(chunks)

    def _next_or_end(self) -> Chunk:
        try:
            return next(self)
        except StopIteration:
            raise StopAsyncIteration from None

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ready(self) -> bool:
        """Whether the next chunk, or the end, is there: reading it does not wait."""
        return self._request.has_news

    def __repr__(self) -> str:
        state = "cancelled" if self._request.cancelled else "finished" if self._request.finished else "running"
        return f"<Stream {state}: {self._request.num_prompt_tokens} + {len(self._request.answer_ids)} tokens>"

    def close(self) -> None:
        """Stop generating and deliver nothing more; what was computed stays in the cache.

        May be called from any thread, and never waits for a step.
        """
        self._runner.cancel(self._request)

    def text(self) -> str:
        """Run to the end and return the remaining text as one string."""
        return "".join(chunk.text for chunk in self)

    def answer(self) -> Answer:
        """Run to the end and return the rest of the answer as a whole."""
        return answer_of(list(self))


def read_all(streams: Sequence[Stream | EdgeError]) -> list[Answer]:
    """Read all streams to their ends; an error becomes an answer with the error and the text before it."""
    found: list[Answer] = []
    for stream in streams:
        chunks: list[Chunk] = []
        try:
            if isinstance(stream, EdgeError):
                raise stream
            chunks += stream  # keeps the chunks before an error
            found.append(answer_of(chunks))
        except EdgeError as error:
            found.append(replace(answer_of(chunks), finish_reason="error", error=error))
    return found


def answer_of(chunks: Sequence[Chunk]) -> Answer:
    """Return chunks as one answer."""
    last = chunks[-1] if chunks else Chunk("", finish_reason="cancelled")
    return Answer(
        "".join(chunk.text for chunk in chunks),
        tuple(i for chunk in chunks for i in chunk.token_ids),
        last.finish_reason or "cancelled",
        last.stats,
        tuple(entry for chunk in chunks for entry in chunk.logprobs),
        last.stopped_by,
        tool_calls=calls_of(chunks),
        prompt_logprobs=tuple(entry for chunk in chunks for entry in chunk.prompt_logprobs),
        reasoning="".join(chunk.reasoning for chunk in chunks),
    )


def calls_of(chunks: Sequence[Chunk]) -> tuple[ToolCall, ...]:
    """Return the calls of tools whose pieces are in chunks."""
    pieces = [piece for chunk in chunks for piece in chunk.calls]
    found: dict[int, tuple[CallPiece, list[str]]] = {}
    for piece in pieces:
        found.setdefault(piece.index, (piece, []))[1].append(piece.arguments)
    return tuple(ToolCall(first.name, "".join(arguments), first.id) for first, arguments in found.values())
