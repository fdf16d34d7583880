"""Which request computes when: continuous batching over one engine and one KV cache.

In: requests. Out: the same requests, each a step further, until they are finished. Requests join and leave between two
steps; what a new one shares with earlier ones is not computed again. Knows nothing about text, bundles or threads:
`admission` decides who runs, and `runner` who makes the steps.

A step is one decode of all running answers together, then some of one prompt: a long prompt never holds up the answers
of others for longer than a short chunk takes. Prompts take turns. A new one is read before those begun earlier, so that
a short one need not wait for long ones; a prompt that was passed over a few times in a row is read first all the same.

What is wrong with one request ends that one alone. After a failure that nobody foresaw, at whatever line, nothing is
trusted that a step changes: the pool starts over, and all requests are computed again from the ids they have. They run
one at a time for a while, so that one that fails again is found. Ids that were chosen are the one truth here; what the
cache holds follows from them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge.runtime.admission import MAX_OVERTAKEN, MAX_RUNNING, Admission
from edge.runtime.arrays import Ids, Logits
from edge.runtime.chunk import Chunk, FinishReason, Prefill
from edge.runtime.engines.engine import Engine, Step, StepInterrupted
from edge.runtime.errors import CacheFullError, EdgeError, own_error
from edge.runtime.kv.held import HeldSequences
from edge.runtime.kv.prefix import PrefixCache, PrefixStats
from edge.runtime.kv.snapshot import Snapshot
from edge.runtime.request import Request
from edge.runtime.speculation import StepCost

SHARED_CHUNK = 64  # prompt tokens a step, while others decode
REPLAY_ROWS = 32  # tokens of a preempted answer that are computed again in one step
LEAST_MS = 1e-3  # of a step that a clock does not see
CAREFUL_STEPS = 64  # in which requests run one at a time, after a failure that may be one's own

logger = logging.getLogger(__name__)


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
    """Runs requests on an engine.

    `submit`, `stats` and the interrupts may be called from any thread, the rest from one at a time.
    """

    def __init__(
        self, engine: Engine, cost: StepCost, on_finish: Callable[[Request], None] = lambda _request: None
    ) -> None:
        self._engine, self._info = engine, engine.info
        self._cost = cost
        self._on_finish = on_finish
        self._admission = Admission(engine)
        self._prefilling: deque[Request] = deque()
        self._decoding: list[Request] = []
        self._live: dict[int, Request] = {}  # by identity: all that are not over, wherever a step has them
        self.held = HeldSequences()  # of no request
        self._careful = 0  # steps left in which requests run one at a time

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
        self._live[id(request)] = request
        self._admission.submit(request)

    def interrupt_last(self) -> None:
        """Let a step that runs right now end soon, as if it had not begun. It is the last one."""
        self._engine.interrupt(final=True)

    def interrupt_if_unwanted(self) -> None:
        """Let a step end soon where nobody waits for what it computes. Others follow."""
        if all(request.unwanted or request.finished for request in list(self._live.values())):
            self._engine.interrupt(final=False)

    def add_snapshot(self, snapshot: Snapshot) -> None:
        """Start requests that begin like a file from it, instead of from an earlier one of its name."""
        others = [other for other in self._admission.snapshots if other.path != snapshot.path]
        self._admission.snapshots = [*others, snapshot]

    def step(self) -> None:
        """Go one step further. An error of one request, or of the engine computing it, ends that request.

        Raises what nobody foresaw; `recover` then has to be called.
        """
        try:
            self.sweep()
            most = 1 if self._careful else MAX_RUNNING
            self._prefilling.extendleft(reversed(self._admission.admit(self._prefilling, self._decoding, most)))
            self._decode()
            self._prefill()
            self._careful = max(self._careful - 1, 0)
        except StepInterrupted:  # nothing was committed
            logger.debug("a step was interrupted")
        self.sweep()

    def recover(self, error: BaseException) -> None:
        """Go on after a step that failed at any line: compute again what was chosen, without the one that failed."""
        logger.error("a step failed; its requests are computed again", exc_info=error)
        live = sorted((r for r in self._live.values() if not r.finished), key=lambda request: request.arrival)
        running = [request for request in live if request.sequence is not None]
        if len(running) == 1 or (self._careful and live):
            (running or live)[0].fail(own_error(error))
        self._careful = CAREFUL_STEPS
        self._start_over([request for request in live if not request.finished])

    def fail_all(self, error: BaseException) -> None:
        """End every request with an error."""
        for request in list(self._live.values()):
            request.fail(own_error(error))
        self._start_over([])

    def _start_over(self, live: list[Request]) -> None:
        """Forget everything but these requests."""
        self._prefilling.clear()
        self._decoding.clear()
        self.held.forget()
        self._admission.start_over(live)
        self._live = {id(request): request for request in self._live.values() if not request.finished}

    def sweep(self) -> None:
        """Let go of requests that are finished, cancelled or late; what they computed is kept for others."""
        self._admission.take_in()
        self.held.sweep()
        for request in list(self._live.values()):
            if not request.finished and (request.unwanted or request.late):
                self._finish(request, "cancelled" if request.unwanted else "deadline")
            if request.finished:
                self._drop(request)

    def cancel_all(self) -> None:
        """End every request."""
        for request in list(self._live.values()):
            request.cancelled = True
        self.sweep()

    def held_blocks(self) -> list[int]:
        """Every block that a request or the prefix cache holds, once for each, for the pool's integrity check."""
        running = [r.sequence for r in (*self._prefilling, *self._decoding) if r.sequence is not None]
        mine = [block for sequence in running for block in sequence.block_table]
        return self.prefixes.held_blocks() + self.held.blocks + mine

    def _finish(self, request: Request, reason: FinishReason) -> None:
        """End a request before its end."""
        try:
            request.finish(reason)
        except BaseException as error:  # of its text; it is over all the same
            request.fail(own_error(error))

    def _drop(self, request: Request) -> None:
        """A request is over, whether it ran or not."""
        self._stop(request)
        self._admission.forget(request)
        self._live.pop(id(request), None)
        try:
            self._on_finish(request)
        except Exception:  # what others make of an answer does not change it
            logger.exception("what was to be done with a finished answer failed")

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
                self._drop(leaving)
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
            try:
                rows = self._compute(request, budget)
            except EdgeError as error:  # the engine cannot compute this one
                request.fail(error)
                self._stop(request)
                continue
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
        draft = self._draft()
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
        try:
            rows = self._engine.decode(steps)
        except EdgeError as error:
            self._decode_singly(running, steps, draft, error)
            return
        for request, found in zip(running, rows, strict=True):
            self._accept(request, found, draft)
        if len(running) == 1:
            self._cost.record(steps[0].ids.size, max((time.perf_counter() - started) * 1000, LEAST_MS))

    def _decode_singly(self, running: list[Request], steps: list[Step], draft: list[int], error: EdgeError) -> None:
        """After an engine failed at several requests: each by itself, so that one which cannot be computed is found."""
        for request, step in zip(running, steps, strict=True):
            step.sequence.trim(min(len(request.ids) - 1, step.sequence.num_tokens))
        for request, step in zip(running, steps, strict=True):
            if len(running) == 1:
                request.fail(error)
                continue
            try:
                (found,) = self._engine.decode([step])
            except EdgeError as own:
                request.fail(own)
            else:
                self._accept(request, found, draft)

    def _draft(self) -> list[int]:
        """Ids to verify in the next step. Rows of other answers fill a step as well as drafts do, and surely."""
        if len(self._decoding) != 1:
            return []
        (request,) = self._decoding
        try:
            draft = request.draft()
        except BaseException as error:  # of its constraint
            request.fail(own_error(error))
            self._stop(request)
            return []
        return draft if draft and self._reserves(request, 1 + len(draft)) else []

    def _accept(self, request: Request, rows: Logits, draft: list[int]) -> None:
        """Let a request choose."""
        try:
            request.accept(rows, draft)
        except BaseException as error:  # of sampling, a constraint, the tokenizer: those in Rust raise no Exception
            request.fail(own_error(error))
        assert request.sequence is not None
        request.sequence.trim(min(len(request.ids) - 1, request.sequence.num_tokens))


def _array(ids: list[int]) -> Ids:
    return np.array(ids, np.int64)
