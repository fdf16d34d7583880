"""Which request computes when: continuous batching over one engine and one KV cache.

In: requests. Out: the same requests, each a step further, until they are finished. Requests join and leave between two
steps; what a new one shares with earlier ones is not computed again. Knows nothing about text or bundles.

A step is one decode of all running answers together, then some of one prompt: a long prompt never holds up the answers
of others for longer than a short chunk takes, and prompts take turns. A request is admitted when all it may ever need
fits beside what the running ones may still need, so that none has to be interrupted: until then it waits, in order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from edge.runtime.engines import Engine, Logits, Step
from edge.runtime.errors import ContextLengthError, EdgeError, SnapshotError
from edge.runtime.kv.pool import Sequence
from edge.runtime.kv.prefix import PrefixCache, common_prefix
from edge.runtime.kv.snapshot import Snapshot
from edge.runtime.request import Chunk, Prefill, Request
from edge.runtime.speculation import StepCost

SHARED_CHUNK = 64  # prompt tokens a step, while others decode
WORTH_WAITING = 32  # tokens that another request computes right now


class Scheduler:
    """Runs requests on an engine. Not for several threads at once."""

    def __init__(
        self, engine: Engine, cost: StepCost, on_finish: Callable[[Request], None] = lambda _request: None
    ) -> None:
        self._engine = engine
        self._cost = cost
        self._on_finish = on_finish
        self.prefixes = PrefixCache(engine.pool)
        self.snapshots: list[Snapshot] = []  # prompts that begin like one of these start from there
        self._waiting: list[Request] = []
        self._prefilling: deque[Request] = deque()
        self._decoding: list[Request] = []

    @property
    def num_requests(self) -> int:
        """Requests that are not finished."""
        return len(self._waiting) + len(self._prefilling) + len(self._decoding)

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn."""
        self._waiting.append(request)

    def step(self) -> None:
        """Go one step further. Raises DeviceError when the engine fails; requests stay as they were."""
        self.sweep()
        self._admit()
        self._decode()
        self._prefill()
        self.sweep()

    def sweep(self) -> None:
        """Let go of requests that are finished, cancelled or late; what they computed is kept for others."""
        for request in [*self._waiting, *self._prefilling, *self._decoding]:
            if not request.finished and (request.cancelled or request.late):
                request.finish("cancelled" if request.cancelled else "deadline")
            if request.finished:
                self._leave(request)

    def _admit(self) -> None:
        """Give waiting requests a sequence each, as far as there is room. They are read before those begun earlier."""
        admitted = 0
        for request in list(self._waiting):
            if self._is_being_prefilled(request.ids):
                continue  # it will start from what another request computes right now
            if not self._fits(request):
                if self._prefilling or self._decoding:
                    break  # those behind wait too, or a large request would wait for ever
                self._waiting.remove(request)
                request.fail(self._refusal(request))
                continue
            self._waiting.remove(request)
            # The last prompt token is computed in any case: its logits choose the first token of the answer.
            request.sequence = self._start(request.ids, len(request.ids) - 1)
            request.cached_tokens = request.sequence.num_tokens
            self._prefilling.insert(admitted, request)
            admitted += 1

    def _is_being_prefilled(self, ids: list[int]) -> bool:
        """Whether much of these ids, beyond what is kept, is about to be computed for another request."""
        if not self._prefilling:
            return False
        kept = self.prefixes.count_match(ids)
        return any(common_prefix(other.ids, ids) >= kept + WORTH_WAITING for other in self._prefilling)

    def _fits(self, request: Request) -> bool:
        pool = self._engine.pool
        shared, evictable = self.prefixes.room(request.ids, len(request.ids) - 1)
        promised = sum(
            max(pool.blocks_for(other.max_tokens) - len(other.sequence.block_table), 0)
            for other in [*self._prefilling, *self._decoding]
            if other.sequence is not None
        )
        return pool.blocks_for(request.max_tokens) - shared <= pool.num_free + evictable - promised

    def _refusal(self, request: Request) -> ContextLengthError:
        pool, stats = self._engine.pool, self.prefixes.stats
        return ContextLengthError(
            f"prompt and answer may take {request.max_tokens} tokens, that is {pool.blocks_for(request.max_tokens)} "
            f"blocks of the KV cache; it has {pool.num_blocks} ({pool.bytes:,} bytes), of which {stats.pinned_blocks} "
            "are pinned; lower max_new_tokens, unpin a prefix, or load with a larger kv_cache_bytes"
        )

    def _start(self, ids: list[int], limit: int) -> Sequence:
        """A sequence with as many of the first `limit` ids as some other sequence, the cache or a snapshot holds."""
        kept = min(self.prefixes.count_match(ids), limit)
        files = [(min(common_prefix(stored.ids, ids), limit), stored) for stored in self.snapshots]
        others = [
            (min(common_prefix(other.ids[:-1], ids), limit), other.sequence)
            for other in self._decoding
            if other.sequence is not None
        ]
        in_file, in_use = (max((shared for shared, _ in found), default=0) for found in (files, others))
        if in_use > max(kept, in_file):
            sequence = next(other for shared, other in others if shared == in_use).fork()
            sequence.trim(in_use)
            sequence.reserve(1)  # takes the copy of a shared block while there is room for it
            sequence.trim(in_use)
        elif in_file > kept:
            stored = next(stored for shared, stored in files if shared == in_file)
            try:
                sequence = stored.restore(self._engine.pool, in_file)
            except SnapshotError:  # somebody wrote over the file; what it held can be computed
                self.snapshots.remove(stored)
                return self._start(ids, limit)
        else:
            return self.prefixes.match(ids, limit)
        self.prefixes.count_lookup(len(ids), sequence.num_tokens)
        return sequence

    def _prefill(self) -> None:
        """Prompt tokens of one request after another, up to one chunk in all."""
        budget = self._engine.prefill_chunk
        if self._decoding:
            budget = min(budget, SHARED_CHUNK)
        whole = budget
        while self._prefilling and budget > 0:
            request = self._prefilling[0]
            assert request.sequence is not None
            left = len(request.ids) - request.sequence.num_tokens
            if budget < min(left, whole):
                return
            rows = self._forward(request.ids, request.sequence, budget)
            budget -= min(left, budget)
            self._prefilling.popleft()
            if left <= whole:
                self.prefixes.insert(request.ids, request.sequence, whole=False)
                self._accept(request, rows, [])
                self._decoding.append(request)
            else:
                request.chunks.append(Chunk("", prefill=Prefill(request.sequence.num_tokens, len(request.ids))))
                self._prefilling.append(request)

    def _forward(self, ids: list[int], sequence: Sequence, limit: int) -> Logits:
        """Compute up to `limit` ids that are missing; logits of the last."""
        new = np.array(ids[sequence.num_tokens : sequence.num_tokens + limit], np.int64)
        return self._engine.forward(new, sequence, np.array([new.size - 1], np.int64))

    def _decode(self) -> None:
        """One token or more of every running answer, in one run of the engine."""
        running = [request for request in self._decoding if not request.finished]
        if not running:
            return
        started = time.perf_counter()
        # Rows of other answers fill a step as well as drafts do, and surely.
        drafts = [running[0].draft()] if len(running) == 1 else [[] for _ in running]
        steps = []
        for request, draft in zip(running, drafts, strict=True):
            assert request.sequence is not None
            steps.append(Step(request.sequence, np.array([request.ids[-1], *draft], np.int64)))
        rows = self._engine.decode(steps)
        for request, draft, found in zip(running, drafts, rows, strict=True):
            self._accept(request, found, draft)
        if len(running) == 1:
            self._cost.record(1 + len(drafts[0]), (time.perf_counter() - started) * 1000)

    def _accept(self, request: Request, rows: Logits, draft: list[int]) -> None:
        """Let a request choose; what is wrong with one request ends that one alone."""
        try:
            request.accept(rows, draft)
        except EdgeError as error:
            request.fail(error)
        assert request.sequence is not None
        request.sequence.trim(min(len(request.ids) - 1, request.sequence.num_tokens))

    def _leave(self, request: Request) -> None:
        for group in (self._waiting, self._prefilling, self._decoding):
            if request in group:
                group.remove(request)
        if request.sequence is not None:
            self.prefixes.insert(request.ids, request.sequence, whole=True)
            request.sequence.free()
            request.sequence = None
        self._on_finish(request)
