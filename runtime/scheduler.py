"""Which request computes when: continuous batching over one engine and one KV cache.

In: requests. Out: the same requests, each a step further, until they are finished. Requests join and leave between two
steps; what a new one shares with earlier ones is not computed again. Knows nothing about text, bundles or threads:
`admission` decides who runs, and `runner` who makes the steps.

A step is one decode of all running answers together, then some of one prompt: a long prompt never holds up the answers
of others for longer than a short chunk takes. Prompts take turns. A new one is read before those begun earlier, so that
a short one need not wait for long ones; a prompt that was passed over a few times in a row is read first all the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge.runtime.admission import MAX_OVERTAKEN, Admission
from edge.runtime.arrays import Ids, Logits
from edge.runtime.chunk import Chunk, Prefill
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.errors import CacheFullError, EdgeError
from edge.runtime.kv.prefix import PrefixCache, PrefixStats
from edge.runtime.kv.snapshot import Snapshot
from edge.runtime.request import Request
from edge.runtime.speculation import StepCost

SHARED_CHUNK = 64  # prompt tokens a step, while others decode
REPLAY_ROWS = 32  # tokens of a preempted answer that are computed again in one step
LEAST_MS = 1e-3  # of a step that a clock does not see


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """What runs and waits, and what the KV cache holds. Counts are since the model was loaded."""

    running: int
    waiting: int
    preemptions: int
    tokens: int  # that the KV cache has memory for
    free_tokens: int  # of blocks that nobody holds; what `prefixes` keeps and is not pinned can be had as well
    prefixes: PrefixStats


class Scheduler:
    """Runs requests on an engine. `submit` and `stats` may be called from any thread, the rest from one at a time."""

    def __init__(
        self, engine: Engine, cost: StepCost, on_finish: Callable[[Request], None] = lambda _request: None
    ) -> None:
        self._engine, self._info = engine, engine.info
        self._cost = cost
        self._on_finish = on_finish
        self._admission = Admission(engine)
        self._prefilling: deque[Request] = deque()
        self._decoding: list[Request] = []

    @property
    def prefixes(self) -> PrefixCache:
        """What is kept of requests that are over."""
        return self._admission.prefixes

    @property
    def snapshots(self) -> list[Snapshot]:
        """Files that requests may start from."""
        return self._admission.snapshots

    @property
    def num_requests(self) -> int:
        """Requests that are not finished."""
        return self._admission.num_waiting + len(self._prefilling) + len(self._decoding)

    @property
    def stats(self) -> SchedulerStats:
        pool = self._engine.pool
        return SchedulerStats(
            running=len(self._prefilling) + len(self._decoding),
            waiting=self._admission.num_waiting,
            preemptions=self._admission.preemptions,
            tokens=pool.max_tokens,
            free_tokens=pool.num_free_tokens,
            prefixes=self.prefixes.stats,
        )

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn."""
        self._admission.submit(request)

    def add_snapshot(self, snapshot: Snapshot) -> None:
        """Start requests that begin like a file from it, instead of from an earlier one of its name."""
        others = [other for other in self._admission.snapshots if other.path != snapshot.path]
        self._admission.snapshots = [*others, snapshot]

    def step(self) -> None:
        """Go one step further. Raises DeviceError when the engine fails; requests stay as they were."""
        self.sweep()
        self._prefilling.extendleft(reversed(self._admission.admit(self._prefilling, self._decoding)))
        self._decode()
        self._prefill()
        self.sweep()

    def sweep(self) -> None:
        """Let go of requests that are finished, cancelled or late; what they computed is kept for others."""
        self._admission.take_in()
        for request in [*self._admission.waiting, *self._prefilling, *self._decoding]:
            if not request.finished and (request.cancelled or request.late):
                request.finish("cancelled" if request.cancelled else "deadline")
            if request.finished:
                self._stop(request)
                self._admission.forget(request)
                self._on_finish(request)

    def cancel_all(self) -> None:
        """End every request."""
        self._admission.take_in()
        for request in [*self._admission.waiting, *self._prefilling, *self._decoding]:
            request.cancelled = True
        self.sweep()

    def held_blocks(self) -> list[int]:
        """Every block that a request or the prefix cache holds, once for each, for the pool's integrity check."""
        running = [r.sequence for r in (*self._prefilling, *self._decoding) if r.sequence is not None]
        return self.prefixes.held_blocks() + [block for sequence in running for block in sequence.block_table]

    def _stop(self, request: Request) -> None:
        """Compute no more for a request."""
        if request in self._prefilling:
            self._prefilling.remove(request)
        elif request in self._decoding:
            self._decoding.remove(request)

    def _has_room(self, request: Request, num_tokens: int) -> bool:
        """Have room for a running request's next tokens, at the cost of younger ones; False when it has to leave."""
        while not self._reserves(request, num_tokens):
            leaving = self._admission.who_leaves(request, [*self._prefilling, *self._decoding])
            self._stop(leaving)
            if leaving.finished:
                self._admission.forget(leaving)
                self._on_finish(leaving)
            else:
                self._admission.preempt(leaving)
            if leaving is request:
                return False
        return True

    def _reserves(self, request: Request, num_tokens: int) -> bool:
        """Reserve room for tokens if there is some."""
        assert request.sequence is not None
        try:
            request.sequence.reserve(num_tokens)
        except CacheFullError:
            return False
        return True

    def _prefill(self) -> None:
        """Prompt tokens of one request after another, up to one chunk in all."""
        budget = self._info.prefill_chunk
        if self._decoding:
            budget = min(budget, SHARED_CHUNK)
        whole, reading = budget, list(self._prefilling)
        if starving := [request for request in reading if request.skipped >= MAX_OVERTAKEN + len(reading)]:
            self._prefilling.remove(starving[0])
            self._prefilling.appendleft(starving[0])
        for request in reading:
            request.skipped += 1
        while self._prefilling and budget > 0:
            request = self._prefilling[0]
            assert request.sequence is not None
            left = len(request.ids) - request.sequence.num_tokens
            if budget < min(left, whole):  # a chunk that is only begun would be computed less well
                return
            if not self._has_room(request, min(left, budget)):
                continue
            rows = self._compute(request, budget)
            done = left - (len(request.ids) - request.sequence.num_tokens)
            budget -= done
            request.skipped = 0
            self._prefilling.popleft()
            if done == left:
                self.prefixes.insert(request.keys, request.sequence, whole=False)
                self._decoding.append(request)
                self._accept(request, rows, [])
            else:
                if not request.preemptions:
                    request.chunks.append(Chunk("", prefill=Prefill(request.sequence.num_tokens, len(request.ids))))
                self._prefilling.append(request)

    def _compute(self, request: Request, limit: int) -> Logits:
        """Compute up to `limit` tokens that a request's sequence lacks; logits of the last.

        An answer that was preempted is computed again as it was written where bits count: token by token, though many
        in one step, as drafts are. Reading it like a prompt rounds differently.
        """
        assert request.sequence is not None
        begin, end = request.sequence.num_tokens, len(request.ids)
        if self._info.reproducible and end > request.num_prompt_tokens:
            if begin >= request.num_prompt_tokens:
                end = min(end, begin + min(limit, self._info.max_step_rows or REPLAY_ROWS))
                step = Step(request.sequence, _array(request.ids[begin:end]), request.positions(begin, end - begin))
                return self._engine.decode([step])[0][-1:]
            end = request.num_prompt_tokens
        ids = _array(request.ids[begin : min(end, begin + limit)])
        inputs = request.inputs(begin, begin + ids.size)
        return self._engine.forward(ids, request.sequence, _array([ids.size - 1]), inputs)

    def _decode(self) -> None:
        """One token or more of every running answer, in one run of the engine."""
        started = time.perf_counter()
        # Rows of other answers fill a step as well as drafts do, and surely.
        draft = self._decoding[0].draft() if len(self._decoding) == 1 else []
        if draft and not self._reserves(self._decoding[0], 1 + len(draft)):
            draft = []
        for request in sorted(
            self._decoding, key=lambda running: running.arrival
        ):  # the oldest takes what room is left
            if request.sequence is not None:  # else it has given way to an older one
                self._has_room(request, 1)
        running = self._decoding
        if not running:
            return
        steps = []
        for request in running:
            assert request.sequence is not None
            ids = _array([request.ids[-1], *draft])
            steps.append(Step(request.sequence, ids, request.positions(len(request.ids) - 1, ids.size)))
        rows = self._engine.decode(steps)
        for request, found in zip(running, rows, strict=True):
            self._accept(request, found, draft)
        if len(running) == 1:
            self._cost.record(steps[0].ids.size, max((time.perf_counter() - started) * 1000, LEAST_MS))

    def _accept(self, request: Request, rows: Logits, draft: list[int]) -> None:
        """Let a request choose; what is wrong with one request ends that one alone."""
        try:
            request.accept(rows, draft)
        except EdgeError as error:
            request.fail(error)
        assert request.sequence is not None
        request.sequence.trim(min(len(request.ids) - 1, request.sequence.num_tokens))


def _array(ids: list[int]) -> Ids:
    return np.array(ids, np.int64)
