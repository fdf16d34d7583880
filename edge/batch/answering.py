"""Many requests at once, answered by one thread.

In: a model and lines. Out: outcomes, in the order in which they end. As many requests as `concurrency` says are
submitted at a time, and a new one as soon as one ends; how many of them compute together is up to the scheduler. Knows
nothing about files.

Waiting for one answer advances all. So this waits for the oldest, which is computed as long as any is, and takes from
the others what is there already. A picture is looked at in the same thread, before its line is submitted: the others
wait for it, which costs no time in all, since the tower takes every core.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass

from edge.batch.lines import Line
from edge.batch.requests import WireRequest, head_of, name_calls, request_of
from edge.runtime.chunk import Answer, Chunk
from edge.runtime.errors import ClosedError, EdgeError
from edge.runtime.llm import LLM
from edge.runtime.settings import UsualSampling
from edge.runtime.stream import Stream, answer_of
from edge.runtime.vision.progress import OnPicture
from edge.wire.answers import JsonBody
from edge.wire.errors import error_answer


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a line."""

    index: int
    line: Line
    status: int
    body: JsonBody
    model: str | None = None  # that the line named

    @property
    def tokens(self) -> tuple[int, int]:
        """How many were read and written."""
        usage = self.body.get("usage", {})
        return usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)


def answer_lines(
    llm: LLM,
    lines: Iterable[tuple[int, Line]],
    concurrency: int,
    model: str,
    run: str,
    sampling: UsualSampling = "greedy",
    on_picture: OnPicture | None = None,
) -> Generator[Outcome]:
    """Answer lines, each with its index. model, run: as in `head_of`. An error of a line is its outcome.

    on_picture: told how far each line's pictures are.

    Raises ClosedError if the model is closed meanwhile.
    """
    waiting, active = iter(lines), list[_Task]()
    try:
        while True:
            while len(active) < concurrency and (item := next(waiting, None)) is not None:
                task = _Task(llm, *item, model, run, sampling, on_picture)
                if task.outcome is None:
                    active.append(task)
                else:
                    yield task.outcome
            if not active:
                return
            active[0].wait()
            for task in list(active):
                task.take()
                if task.outcome is not None:
                    active.remove(task)
                    yield task.outcome
    finally:
        for task in active:
            task.close()


class _Task:
    """One line that is being answered: a stream for each choice."""

    def __init__(
        self,
        llm: LLM,
        index: int,
        line: Line,
        model: str,
        run: str,
        sampling: UsualSampling,
        on_picture: OnPicture | None,
    ) -> None:
        self._llm, self._index, self._line, self._model, self._run = llm, index, line, model, run
        self._request: WireRequest | None = None
        self._streams: list[Stream] = []
        self._chunks: list[list[Chunk]] = []
        self._open: list[int] = []  # streams that have not ended
        self.outcome: Outcome | None = None
        try:
            self._request = request_of(line)
            self._streams = self._request.start(llm, sampling, on_picture)
            self._open = list(range(len(self._streams)))
            self._chunks = [[] for _ in self._streams]
        except EdgeError as error:
            self._fail(error)

    def wait(self) -> None:
        """Return when there is something to take."""
        if self.outcome is None:
            self._read(self._open[0])

    def take(self) -> None:
        """Take what is there already. Once every stream has ended, there is an outcome."""
        for which in list(self._open):
            while self.outcome is None and which in self._open and self._streams[which].ready:
                self._read(which)
        if self.outcome is None and not self._open:
            self._finish([answer_of(chunks) for chunks in self._chunks])

    def close(self) -> None:
        """Stop answering."""
        for stream in self._streams:
            stream.close()

    def _read(self, which: int) -> None:
        try:
            chunk = next(self._streams[which], None)
        except EdgeError as error:
            self._fail(error)
            return
        if chunk is not None:
            self._chunks[which].append(chunk)
        if chunk is None or chunk.finish_reason is not None:
            self._open.remove(which)

    def _finish(self, answers: list[Answer]) -> None:
        assert self._request is not None
        if any(answer.finish_reason == "cancelled" for answer in answers):
            self._fail(ClosedError("this model was closed while it answered; load it again"))
            return
        head = head_of(self._line, self._request, self._model, self._run)
        try:
            body = self._request.answer(head, answers, self._llm)
        except EdgeError as error:
            self._fail(error)
            return
        name_calls(self._line, body)
        self._end(200, body)

    def _fail(self, error: EdgeError) -> None:
        self.close()
        if isinstance(error, ClosedError):
            raise error
        told = error_answer(error if self._request is None else self._request.refusal(error), private=True)
        self._end(told.status, told.to_dict())

    def _end(self, status: int, body: JsonBody) -> None:
        named = None if self._request is None else self._request.settings.model
        self.outcome = Outcome(self._index, self._line, status, body, named)
