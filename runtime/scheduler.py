"""Which request computes when: continuous batching over one engine and one KV cache.

In: requests. Out: the same requests, each a step further, until they are finished. Requests join and leave between two
steps; what a new one shares with earlier ones is not computed again. Knows nothing about text, bundles or threads:
`admission` decides which requests run, `prefill` whose prompt is read next, and `runner` who makes the steps.

A step is one decode of all running answers together, then a part of one prompt or of several: a long prompt never holds
up other answers for longer than a short chunk takes.

An error of one request ends only that request. After an unforeseen failure, whatever the line, nothing that a step
changes is trusted: the pool starts over, and all requests are computed again from their ids. They then run one at a
time for a while, so that one that fails again is found. The chosen ids are the only truth here; the cache follows from
them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from edge.runtime.admission import Admission
from edge.runtime.arrays import Logits
from edge.runtime.chunk import Chunk, FinishReason, Prefill
from edge.runtime.engines.engine import Engine, Step, StepInterrupted
from edge.runtime.errors import CacheFullError, EdgeError, own_error
from edge.runtime.kv.held import Held, HeldSequences
from edge.runtime.kv.loaded import LoadedPrefixes
from edge.runtime.kv.prefix import PrefixCache, PrefixStats
from edge.runtime.prefill import PromptTurns, as_array, compute, num_missing
from edge.runtime.request import Request
from edge.runtime.speculation import SharedDrafts

SHARED_CHUNK = 64  # prompt tokens per step while answers are being decoded
LEAST_MS = 1e-3  # for a step that is too short for the clock
CAREFUL_STEPS = 64  # in which requests run one at a time, after a failure that one of them may have caused

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """What runs and waits, and what the KV cache holds. Counts start when the model is loaded."""

    running: int
    waiting: int
    preemptions: int
    tokens: int  # that the KV cache has memory for
    free_tokens: int  # in free blocks; those that `prefixes` keeps unpinned can be used as well
    prefixes: PrefixStats
    step_s: float = 0.0  # for how long the running step has been running; 0 if none is


class Scheduler:
    """Run requests on an engine.

    `submit`, `stats` and the interrupts may be called from any thread, everything else from one thread at a time.
    """

    def __init__(
        self,
        engine: Engine,
        drafts: SharedDrafts,
        on_finish: Callable[[Request], None] = lambda _request: None,
    ) -> None:
        self._engine = engine
        self._drafts = drafts
        self._on_finish = on_finish
        self.held = HeldSequences()  # sequences that belong to no request
        self._admission = Admission(engine, self.held)
        self._prefilling = PromptTurns()
        self._decoding: list[Request] = []
        self._live: dict[int, Request] = {}  # by identity: all unfinished ones, wherever they are in a step
        self._careful = 0  # steps left in which requests run one at a time

    @property
    def prefixes(self) -> PrefixCache:
        """What is kept of finished requests."""
        return self._admission.prefixes

    @property
    def loaded(self) -> LoadedPrefixes:
        """Prefixes that the model was given, which requests may start from."""
        return self._admission.loaded

    @property
    def num_requests(self) -> int:
        """How many requests are unfinished."""
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
            prefixes=self._admission.cache_stats,
        )

    def submit(self, request: Request) -> None:
        """Queue a request."""
        self._live[id(request)] = request
        self._admission.submit(request)

    def interrupt_last(self) -> None:
        """Ask a running step to end soon, as if it had not begun. No step follows."""
        self._engine.interrupt(final=True)
        self._drafts.interrupt(final=True)

    def interrupt_if_unwanted(self) -> None:
        """Ask a running step to end soon if no reader waits for its results. Other steps follow."""
        if all(request.unwanted or request.finished for request in list(self._live.values())):
            self._engine.interrupt(final=False)
            self._drafts.interrupt(final=False)

    def step(self) -> None:
        """Make one step. An error of one request, or of the engine computing it, ends that request.

        Raises unforeseen errors; `recover` must then be called.
        """
        try:
            self.sweep()
            most = 1 if self._careful else self._engine.info.max_running
            self._prefilling.add(self._admission.admit(list(self._prefilling), self._decoding, most))
            self._decode()
            self._prefill()
            self._careful = max(self._careful - 1, 0)
        except StepInterrupted:  # nothing was committed
            logger.debug("a step was interrupted")
        self.sweep()

    def recover(self, error: BaseException) -> None:
        """Continue after a step that failed at any line: compute all requests again, without the one that failed."""
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
        """Release requests that are finished, cancelled or late; what they computed is kept for others."""
        self._admission.take_in()
        self.held.sweep()
        for request in list(self._live.values()):
            if not request.finished and (request.unwanted or request.late):
                self._finish(request, "cancelled" if request.unwanted else "deadline")
            if request.finished:
                self._drop(request)

    def covering(self, keys: list[int], count: int) -> tuple[bool, Held | None]:
        """Return whether the first `count` keys need not be computed, and what keeps them from being evicted."""
        info = self._engine.info
        if self.loaded.longest_file(keys, count)[0] == count:
            return True, None
        if not (info.can_fork and info.can_trim) or self.prefixes.count_match(keys[:count]) < count:
            return False, None
        sequence = self.prefixes.match(keys, count)
        self.prefixes.insert(keys, sequence, whole=True)  # match may have taken its last block
        if sequence.num_tokens == count:
            return True, self.held.hold(sequence, yielding=True)
        sequence.free()
        return False, None

    def clear_cache(self) -> None:
        """Drop everything that is kept of finished requests and not pinned."""
        self.sweep()
        self._admission.clear_cache()

    def cancel_all(self) -> None:
        """End every request."""
        for request in list(self._live.values()):
            request.cancelled = True
        self.sweep()

    def held_blocks(self) -> list[int]:
        """Return every block once for each request or cache entry that holds it, for the pool's integrity check."""
        running = [r.sequence for r in (*self._prefilling, *self._decoding) if r.sequence is not None]
        mine = [block for sequence in running for block in sequence.block_table]
        return self.prefixes.held_blocks() + self.held.blocks + mine

    def _finish(self, request: Request, reason: FinishReason) -> None:
        """End a request early."""
        try:
            request.finish(reason)
        except BaseException as error:  # from its text; the request ends all the same
            request.fail(own_error(error))

    def _drop(self, request: Request) -> None:
        """Release a finished request, whether it ran or not."""
        self._stop(request)
        self._admission.forget(request)
        self._live.pop(id(request), None)
        try:
            self._on_finish(request)
        except Exception:  # a failing callback does not change the answer
            logger.exception("the callback for a finished answer failed")

    def _stop(self, request: Request) -> None:
        """Compute nothing more for a request."""
        if request in self._prefilling:
            self._prefilling.remove(request)
        elif request in self._decoding:
            self._decoding.remove(request)

    def _has_room(self, request: Request, num_tokens: int) -> bool:
        """Make room for a running request's next tokens, at the cost of younger ones; False if it must leave itself."""
        while not self._reserves(request, num_tokens):
            if self.held.give_way():
                continue
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
        """Reserve room for tokens; False if there is none."""
        assert request.sequence is not None
        try:
            request.sequence.reserve(num_tokens)
        except CacheFullError:
            return False
        return True

    def _prefill(self) -> None:
        """Compute prompt tokens, of one request after another, up to one chunk in all."""
        # The next token of every running answer waits for this, so it gets a smaller budget while there are any.
        whole = self._engine.info.prefill_chunk
        if self._decoding:
            whole = min(whole, SHARED_CHUNK)
        budget = whole
        self._prefilling.begin_step()
        while (request := self._prefilling.next(budget, whole)) is not None:
            missing = num_missing(request)
            if not self._has_room(request, min(missing, budget)):
                continue
            try:
                rows = compute(self._engine, request, budget)
            except EdgeError as error:  # the engine cannot compute this one
                request.fail(error)
                self._stop(request)
                continue
            left = num_missing(request)
            budget -= missing - left
            self._prefilling.end_turn(request)
            assert request.sequence is not None
            if not left:
                self.prefixes.insert(request.keys, request.sequence, whole=False)
                self._decoding.append(request)
                self._accept(request, rows, [])
            elif not request.preemptions:
                request.chunks.append(Chunk("", prefill=Prefill(request.sequence.num_tokens, len(request.ids))))

    def _decode(self) -> None:
        """Compute one token or more of every running answer, in one run of the engine."""
        draft = self._draft()
        started = time.perf_counter()  # what drafts cost is known to those who make them
        oldest_first = sorted(self._decoding, key=lambda running: running.arrival)
        for request in oldest_first:  # which takes the room that is left
            if request.sequence is not None:  # else it has given way to an older one
                self._has_room(request, 1)
        running = self._decoding
        if not running:
            return
        steps = []
        for request in running:
            assert request.sequence is not None
            ids = as_array([request.ids[-1], *draft])
            steps.append(Step(request.sequence, ids, request.positions(len(request.ids) - 1, ids.size)))
        try:
            rows = self._engine.decode(steps)
        except EdgeError as error:
            self._decode_singly(running, steps, draft, error)
            return
        for request, found in zip(running, rows, strict=True):
            self._accept(request, found, draft)
        if len(running) == 1:
            self._drafts.cost.record(steps[0].ids.size, max((time.perf_counter() - started) * 1000, LEAST_MS))

    def _decode_singly(self, running: list[Request], steps: list[Step], draft: list[int], error: EdgeError) -> None:
        """Decode each request alone after a failure, so that the one that cannot be computed is found."""
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
        """Return ids to verify in the next step: none while several answers run, whose own rows fill it for sure."""
        if len(self._decoding) != 1:
            return []
        (request,) = self._decoding
        try:
            draft = request.draft()
        except StepInterrupted:
            raise
        except BaseException as error:  # from its constraint
            request.fail(own_error(error))
            self._stop(request)
            return []
        return draft if draft and self._reserves(request, 1 + len(draft)) else []

    def _accept(self, request: Request, rows: Logits, draft: list[int]) -> None:
        """Let a request choose its next tokens."""
        try:
            request.accept(rows, draft)
        except BaseException as error:  # also from libraries in Rust, whose panics are not Exceptions
            request.fail(own_error(error))
        assert request.sequence is not None
        request.sequence.trim(min(len(request.ids) - 1, request.sequence.num_tokens))
