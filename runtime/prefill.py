"""Reading prompts: whose turn it is, and which tokens of a request are computed next.

In: requests with a sequence each, and an engine. Out: the request to read next, and logits of the last token computed.
Knows nothing about the KV cache's room, or what is done with the logits.

Prompts take turns. A new one is read before those begun earlier, so that a short prompt need not wait for long ones; a
prompt that was passed over several times in a row is read first all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from edge.runtime.arrays import Ids, Logits
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.request import Request

PASSED_OVER = 8  # steps in a row, and one more for every prompt being read, before a prompt is read first
REPLAY_ROWS = 32  # tokens of a preempted answer that are computed again in one step
SCORED_ROWS = 128  # tokens of a prompt in one run if the logits of all are needed: 78 MB with 151,552 tokens


class PromptTurns:
    """The requests whose prompts are being read, in the order of their turns."""

    def __init__(self) -> None:
        self._queue: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._queue)

    def add(self, requests: Sequence[Request]) -> None:
        """Put new requests before all others, in their own order."""
        self._queue.extendleft(reversed(requests))

    def begin_step(self) -> None:
        """Count one more step for every request, and move one that was passed over too often to the front."""
        limit = PASSED_OVER + len(self._queue)
        if starving := next((request for request in self._queue if request.skipped >= limit), None):
            self._queue.remove(starving)
            self._queue.appendleft(starving)
        for request in self._queue:
            request.skipped += 1

    def next(self, budget: int, whole: int) -> Request | None:
        """Return the request to read now, with `budget` tokens left of a step's `whole`; None when the step is over.

        A prompt gets all that it lacks, or else a whole step: reading it in the small chunks that others leave would
        cost more per token (the figures are at each engine's PREFILL_CHUNK).
        """
        if not self._queue or budget <= 0:
            return None
        request = self._queue[0]
        return request if budget >= min(num_missing(request), whole) else None

    def end_turn(self, request: Request) -> None:
        """Move a request to the end once tokens of it were computed; drop it if it lacks none."""
        request.skipped = 0
        self._queue.remove(request)
        if num_missing(request):
            self._queue.append(request)

    def remove(self, request: Request) -> None:
        """Read no more of a request."""
        self._queue.remove(request)

    def clear(self) -> None:
        """Forget all requests."""
        self._queue.clear()


def num_missing(request: Request) -> int:
    """Return how many tokens a request's sequence lacks."""
    assert request.sequence is not None
    return len(request.ids) - request.sequence.num_tokens


def compute(engine: Engine, request: Request, limit: int) -> Logits:
    """Compute up to `limit` tokens that a request's sequence lacks; return the logits of the last one.

    Where bits count, a preempted answer is computed again the way it was written: token by token, though many in one
    step, as drafts are. Reading it like a prompt would round differently.

    A request that wants log-probabilities of its prompt gets those of the tokens after the computed ones.
    """
    assert request.sequence is not None
    info = engine.info
    begin, end = request.sequence.num_tokens, len(request.ids)
    if info.reproducible and end > request.num_prompt_tokens:
        if begin >= request.num_prompt_tokens:
            end = min(end, begin + min(limit, info.max_step_rows or REPLAY_ROWS))
            step = Step(request.sequence, as_array(request.ids[begin:end]), request.positions(begin, end - begin))
            return engine.decode([step])[0][-1:]
        end = request.num_prompt_tokens
    first = request.first_needed
    if scores := first < request.num_prompt_tokens - 1:
        limit = min(limit, SCORED_ROWS)
        if end - begin == limit + 1 and limit > 2:
            limit -= 1  # otherwise a single token would remain, and kernels for one round differently
    end = min(end, begin + limit)
    rows = [*range(first - begin, end - begin - 1), end - begin - 1]
    ids = as_array(request.ids[begin:end])
    logits = engine.forward(ids, request.sequence, as_array(rows), request.inputs(begin, end))
    if scores:
        request.score(logits[: max(min(end, request.num_prompt_tokens - 1) - first, 0)])
    return logits[-1:]


def as_array(ids: list[int]) -> Ids:
    """Return ids as engines take them."""
    return np.array(ids, np.int64)
