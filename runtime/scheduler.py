"""Which request computes when: continuous batching over one engine and one KV cache.

In: requests. Out: the same requests, each a step further, until they are finished. Requests join and leave between two
steps; what a new one shares with earlier ones is not computed again. Knows nothing about text, bundles or threads:
`runner` decides who makes the steps.

A step is one decode of all running answers together, then some of one prompt: a long prompt never holds up the answers
of others for longer than a short chunk takes, and prompts take turns.

A request is admitted when its tokens so far fit, with a block to spare for every answer that may still grow; nothing is
set aside for how long it might become. When blocks run out all the same, the youngest request gives its own back and
waits: what it computed stays in the prefix cache as long as there is room, and its sampler and text go on where they
were, so its answer is that of an undisturbed run. The oldest request is never preempted, so every one gets its turn.
Where one does not fit, at most MAX_OVERTAKEN later ones are admitted before it.
"""

from __future__ import annotations

import logging
import time
from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np

from edge.runtime.arrays import Ids, Logits
from edge.runtime.chunk import Chunk, Prefill
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.errors import CacheFullError, ContextLengthError, EdgeError, SnapshotError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.kv.prefix import PrefixCache, PrefixStats, common_prefix
from edge.runtime.kv.snapshot import Snapshot
from edge.runtime.request import Request
from edge.runtime.speculation import StepCost

SHARED_CHUNK = 64  # prompt tokens a step, while others decode
WORTH_WAITING = 32  # tokens that another request computes right now
MAX_RUNNING = 256  # requests at once; each has a row of logits
MAX_OVERTAKEN = 8
REPLAY_ROWS = 32  # tokens of a preempted answer that are computed again in one step
LEAST_MS = 1e-3  # of a step that a clock does not see

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """What runs and waits, and what the KV cache holds. Counts are since the model was loaded."""

    running: int
    waiting: int
    preemptions: int
    blocks: int
    free_blocks: int  # those that nobody holds; what `prefixes` keeps and is not pinned can be had as well
    block_tokens: int
    prefixes: PrefixStats


class Scheduler:
    """Runs requests on an engine. `submit` and `stats` may be called from any thread, the rest from one at a time."""

    def __init__(
        self, engine: Engine, cost: StepCost, on_finish: Callable[[Request], None] = lambda _request: None
    ) -> None:
        self._engine, self._info = engine, engine.info
        self._cost = cost
        self._on_finish = on_finish
        self.prefixes = PrefixCache(engine.pool, can_trim=self._info.can_trim, can_fork=self._info.can_fork)
        self.snapshots: list[Snapshot] = []  # prompts that begin like one of these start from there
        self._inbox: deque[Request] = deque()  # submitted, and not seen by a step yet
        self._waiting: list[Request] = []  # in order of arrival
        self._prefilling: deque[Request] = deque()
        self._decoding: list[Request] = []
        self._arrivals = count()
        self._held_up: set[int] = set()  # arrivals of requests that have waited for room, for the log
        self._preemptions = 0

    @property
    def num_requests(self) -> int:
        """Requests that are not finished."""
        return len(self._inbox) + len(self._waiting) + len(self._prefilling) + len(self._decoding)

    @property
    def stats(self) -> SchedulerStats:
        pool = self._engine.pool
        return SchedulerStats(
            running=len(self._prefilling) + len(self._decoding),
            waiting=len(self._inbox) + len(self._waiting),
            preemptions=self._preemptions,
            blocks=pool.num_blocks,
            free_blocks=pool.num_free,
            block_tokens=pool.block_size,
            prefixes=self.prefixes.stats,
        )

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn."""
        self._inbox.append(request)

    def step(self) -> None:
        """Go one step further. Raises DeviceError when the engine fails; requests stay as they were."""
        self.sweep()
        self._admit()
        self._decode()
        self._prefill()
        self.sweep()

    def sweep(self) -> None:
        """Let go of requests that are finished, cancelled or late; what they computed is kept for others."""
        while self._inbox:
            request = self._inbox.popleft()
            request.arrival = next(self._arrivals)
            self._waiting.append(request)
        for request in [*self._waiting, *self._prefilling, *self._decoding]:
            if not request.finished and (request.cancelled or request.late):
                request.finish("cancelled" if request.cancelled else "deadline")
            if request.finished:
                self._leave(request)

    def cancel_all(self) -> None:
        """End every request."""
        self.sweep()
        for request in [*self._waiting, *self._prefilling, *self._decoding]:
            request.cancelled = True
        self.sweep()

    def held_blocks(self) -> list[int]:
        """Every block that a request or the prefix cache holds, once for each, for the pool's integrity check."""
        running = [r.sequence for r in (*self._prefilling, *self._decoding) if r.sequence is not None]
        return self.prefixes.held_blocks() + [block for sequence in running for block in sequence.block_table]

    # --- Who runs -----------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give waiting requests a sequence each, as far as there is room. They are read before those begun earlier."""
        admitted = 0
        passed: list[Request] = []  # those that do not fit
        for request in list(self._waiting):
            if len(self._prefilling) + len(self._decoding) >= MAX_RUNNING:
                break
            if any(other.overtaken >= MAX_OVERTAKEN for other in passed):
                break
            if self._is_being_prefilled(request.keys):
                continue  # it will start from what another request computes right now
            # The last token is computed in any case: its logits choose the next one.
            sequence = self._start(request, len(request.ids) - 1) if self._fits(request) else None
            if sequence is None:
                alone = not self._prefilling and not self._decoding  # nothing will make room
                if alone or self._never_fits(request):
                    self._refuse(request)
                else:
                    self._note_wait(request)
                    passed.append(request)
                if len(passed) > MAX_OVERTAKEN:  # there is a limit to what is tried in every step
                    break
                continue
            for other in passed:
                other.overtaken += 1
            self._waiting.remove(request)
            request.sequence = sequence
            if not request.preemptions:
                request.cached_tokens = request.sequence.num_tokens
            self._prefilling.insert(admitted, request)
            admitted += 1

    def _note_wait(self, request: Request) -> None:
        if request.arrival not in self._held_up:
            self._held_up.add(request.arrival)
            logger.info("request %d of %d tokens waits for room in the KV cache", request.arrival, len(request.ids))

    def _is_being_prefilled(self, keys: list[int]) -> bool:
        """Whether much of these keys, beyond what is kept, is about to be computed for another request."""
        if not self._prefilling or not (self._info.can_fork and self._info.can_trim):
            return False
        kept = self.prefixes.count_match(keys)
        return any(common_prefix(other.keys, keys) >= kept + WORTH_WAITING for other in self._prefilling)

    def _fits(self, request: Request) -> bool:
        """Whether a request's tokens so far have room, and every running answer, this one too, a block to grow into."""
        pool, needed = self._engine.pool, self._blocks_now(request)
        if self._never_fits(request):
            return False
        shared, evictable = self.prefixes.room(request.keys, len(request.ids) - 1)
        promised = 0
        running = [*self._prefilling, *self._decoding]
        for other in running:
            assert other.sequence is not None
            held = max(len(other.sequence.block_table), self._blocks_now(other))
            promised += held - len(other.sequence.block_table) + (pool.blocks_for(other.max_tokens) > held)
        if running:
            needed += pool.blocks_for(request.max_tokens) > needed
        return needed - shared <= pool.num_free + evictable - promised

    def _blocks_now(self, request: Request) -> int:
        """Blocks of a request's tokens and of the next one."""
        return self._engine.pool.blocks_for(min(len(request.ids) + 1, request.max_tokens))

    def _never_fits(self, request: Request) -> bool:
        """Whether a request asks for a length that the pool will not hold, even alone, while pinned blocks stay."""
        if request.settings.max_new_tokens is None:
            return False
        pool = self._engine.pool
        missing = pool.blocks_for(request.max_tokens) - self.prefixes.room(request.keys, len(request.ids) - 1)[0]
        return missing > pool.num_blocks - self.prefixes.stats.pinned_blocks

    def _refuse(self, request: Request) -> None:
        """End a request that has no room even alone, and has no answer yet."""
        pool, stats = self._engine.pool, self.prefixes.stats
        tokens = len(request.ids) + 1 if request.settings.max_new_tokens is None else request.max_tokens
        error = ContextLengthError(
            f"prompt and answer may take {tokens} tokens, that is {pool.blocks_for(tokens)} "
            f"blocks of the KV cache; it has {pool.num_blocks} ({pool.bytes:,} bytes), of which {stats.pinned_blocks} "
            "are pinned; lower max_new_tokens, unpin a prefix, or load with a larger kv_cache_bytes"
        )
        logger.info("refused: %s", error)
        request.fail(error)
        self._leave(request)

    def _start(self, request: Request, limit: int) -> CacheSequence | None:
        """A sequence with as many of the first `limit` tokens as some other sequence, the cache or a snapshot holds.

        None where there is no room for the copies that takes.
        """
        keys = request.keys
        kept = min(self.prefixes.count_match(keys), limit)
        files = [(min(common_prefix(stored.keys, keys), limit), stored) for stored in self.snapshots]
        others = [
            (min(common_prefix(other.keys[:-1], keys), limit), other.sequence)
            for other in self._decoding
            if other.sequence is not None and self._info.can_fork and self._info.can_trim
        ]
        in_file, in_use = (max((shared for shared, _ in found), default=0) for found in (files, others))
        if in_use > max(kept, in_file):
            sequence = next(other for shared, other in others if shared == in_use).fork()
            sequence.trim(in_use)
            try:
                sequence.reserve(1)  # takes the copy of a shared block while there is room for it
            except CacheFullError:
                sequence.free()
                return None
            sequence.trim(in_use)
        elif in_file > kept:
            stored = next(stored for shared, stored in files if shared == in_file)
            try:
                sequence = stored.restore(self._engine.pool, in_file)
            except SnapshotError as error:  # somebody wrote over the file; what it held can be computed
                logger.warning("%s", error)
                self.snapshots.remove(stored)
                return self._start(request, limit)
            except CacheFullError:
                return None
        else:
            return self.prefixes.match(keys, limit)
        self.prefixes.count_lookup(len(keys), sequence.num_tokens)
        return sequence

    # --- Room ---------------------------------------------------------------------------------------------------------

    def _has_room(self, request: Request, num_tokens: int) -> bool:
        """Have room for a running request's next tokens, at the cost of younger ones; False when it has to leave.

        A request alone that still finds no room is as long as the cache can hold: it ends there.
        """
        while True:
            assert request.sequence is not None
            try:
                request.sequence.reserve(num_tokens)
                return True
            except CacheFullError:
                pass
            running = [*self._prefilling, *self._decoding]
            youngest = max(running, key=lambda other: other.arrival)
            if len(running) == 1:
                if request.answer_ids:
                    request.finish("length")
                    self._leave(request)
                else:
                    self._refuse(request)
                return False
            self._preempt(youngest)
            if youngest is request:
                return False

    def _preempt(self, request: Request) -> None:
        """Let a running request give its blocks back, and wait for its turn to go on."""
        self._free(request)
        if request in self._prefilling:
            self._prefilling.remove(request)
        else:
            self._decoding.remove(request)
        request.preemptions += 1
        self._preemptions += 1
        insort(self._waiting, request, key=lambda other: other.arrival)
        logger.info("preempted request %d after %d tokens: the KV cache is full", request.arrival, len(request.ids))

    def _free(self, request: Request) -> None:
        """Take a request's sequence; what is computed of it stays in the prefix cache."""
        if request.sequence is not None:
            self.prefixes.insert(request.keys, request.sequence, whole=True)
            request.sequence.free()
            request.sequence = None

    def _leave(self, request: Request) -> None:
        for group in (self._waiting, self._prefilling, self._decoding):
            if request in group:
                group.remove(request)
        self._free(request)
        self._held_up.discard(request.arrival)
        self._on_finish(request)

    # --- What is computed ---------------------------------------------------------------------------------------------

    def _prefill(self) -> None:
        """Prompt tokens of one request after another, up to one chunk in all."""
        budget = self._info.prefill_chunk
        if self._decoding:
            budget = min(budget, SHARED_CHUNK)
        whole, waiting = budget, list(self._prefilling)
        if starving := [request for request in waiting if request.skipped >= MAX_OVERTAKEN + len(waiting)]:
            self._prefilling.remove(starving[0])
            self._prefilling.appendleft(starving[0])
        for request in waiting:
            request.skipped += 1
        while self._prefilling and budget > 0:
            request = self._prefilling[0]
            assert request.sequence is not None
            left = len(request.ids) - request.sequence.num_tokens
            if budget < min(left, whole):
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
                most = self._info.max_step_rows or REPLAY_ROWS
                end = min(end, begin + min(limit, most))
                step = Step(request.sequence, _array(request.ids[begin:end]), request.positions(begin, end - begin))
                return self._engine.decode([step])[0][-1:]
            end = request.num_prompt_tokens
        ids = _array(request.ids[begin : min(end, begin + limit)])
        inputs = request.inputs(begin, begin + ids.size)
        return self._engine.forward(ids, request.sequence, _array([ids.size - 1]), inputs)

    def _decode(self) -> None:
        """One token or more of every running answer, in one run of the engine."""
        running = [request for request in self._decoding if not request.finished]
        if not running:
            return
        started = time.perf_counter()
        # Rows of other answers fill a step as well as drafts do, and surely.
        drafts = {request.arrival: request.draft() if len(running) == 1 else [] for request in running}
        for request in sorted(running, key=lambda request: request.arrival):  # the oldest takes what room there is
            if request in self._decoding and not self._can_draft(request, drafts[request.arrival]):
                drafts[request.arrival] = []
                self._has_room(request, 1)
        running = [request for request in self._decoding if not request.finished]
        if not running:
            return
        steps = []
        for request in running:
            assert request.sequence is not None
            ids = _array([request.ids[-1], *drafts[request.arrival]])
            steps.append(Step(request.sequence, ids, request.positions(len(request.ids) - 1, ids.size)))
        rows = self._engine.decode(steps)
        for request, found in zip(running, rows, strict=True):
            self._accept(request, found, drafts[request.arrival])
        if len(running) == 1:
            self._cost.record(steps[0].ids.size, max((time.perf_counter() - started) * 1000, LEAST_MS))

    def _can_draft(self, request: Request, draft: list[int]) -> bool:
        """Whether a draft has room without anybody's leaving; it has taken that room then."""
        assert request.sequence is not None
        try:
            if draft:
                request.sequence.reserve(1 + len(draft))
        except CacheFullError:
            return False
        return bool(draft)

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
