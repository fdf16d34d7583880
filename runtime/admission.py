"""Which requests run, and which give way: the queue of requests, and the room that the KV cache has for them.

In: waiting requests, and those that run now. Out: requests with a sequence each, in their order of arrival. Knows
nothing about what is computed when.

A request is admitted when its tokens so far fit, with a block to spare for every answer that may still grow; nothing is
reserved for the length it might reach. If blocks run out all the same, the youngest request gives its own back and
waits. What it computed stays in the prefix cache as long as there is room, and its sampler and text continue where they
stopped, so its answer is that of an undisturbed run. The oldest request never gives way, so each one gets its turn.
When a request does not fit, at most MAX_OVERTAKEN later ones are admitted before it.
"""

from __future__ import annotations

import logging
from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from edge.runtime.engines.engine import Engine, ResumingEngine
from edge.runtime.engines.limits import MAX_RUNNING
from edge.runtime.errors import CacheFullError, ContextLengthError, SnapshotError
from edge.runtime.kv.held import HeldSequences
from edge.runtime.kv.last import LastSequence
from edge.runtime.kv.loaded import LoadedPrefixes
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.kv.prefix import PrefixCache, PrefixStats, common_prefix
from edge.runtime.request import Request

WORTH_WAITING = 32  # tokens shared with a prompt that is being read: from here on, waiting saves work
MAX_OVERTAKEN = 8
GROWTH = 32  # tokens to spare for an answer if the pool counts tokens; otherwise it is a block

logger = logging.getLogger(__name__)


class Admission:
    """The queue of one engine. `submit` may be called from any thread, the rest from one thread at a time."""

    def __init__(self, engine: Engine, held: HeldSequences) -> None:
        self._pool, self._info, self._held = engine.pool, engine.info, held
        self.prefixes = PrefixCache(engine.pool, can_trim=self._info.can_trim, can_fork=self._info.can_fork)
        self.loaded = LoadedPrefixes()
        # What the engine itself has of the last request, in place of the two above.
        self.last = LastSequence(engine.pool, engine.resume) if isinstance(engine, ResumingEngine) else None
        self.waiting: list[Request] = []  # in order of arrival
        self.preemptions = 0
        self._inbox: deque[Request] = deque()  # submitted, but not yet seen by a step
        self._arrivals = count()
        self._held_up: set[int] = set()  # arrivals of requests that have waited for room, for the log
        # Whether a prompt may start from tokens of an answer: decoding may have given them other bits than reading.
        self._shares_answers = not self._info.reproducible or self._info.decodes_as_it_reads

    @property
    def num_waiting(self) -> int:
        return len(self._inbox) + len(self.waiting)

    @property
    def cache_stats(self) -> PrefixStats:
        """What is kept of finished requests, here or in the engine."""
        stats = self.prefixes.stats
        return stats if self.last is None else replace(stats, tokens=self.last.num_tokens)

    def clear_cache(self) -> None:
        """Drop everything that is kept of finished requests and not pinned."""
        self.prefixes.clear()
        if self.last is not None:
            self.last.forget()

    def submit(self, request: Request) -> None:
        """Queue a request."""
        self._inbox.append(request)

    def take_in(self) -> None:
        """Give submitted requests their places in the queue."""
        while self._inbox:
            request = self._inbox[0]
            if request.arrival < 0:
                request.arrival = next(self._arrivals)
                self.waiting.append(request)
            self._inbox.popleft()  # last, so that a failure before this loses nothing

    def start_over(self, requests: Sequence[Request]) -> None:
        """Queue these requests again and forget everything computed: the pool takes its blocks back."""
        self._pool.start_over()
        self.prefixes.start_over()
        if self.last is not None:
            self.last.forget()
        self.waiting = sorted((r for r in requests if r.arrival >= 0), key=lambda request: request.arrival)
        for request in requests:
            request.preemptions += request.sequence is not None
            request.sequence = None

    def admit(
        self, prefilling: Sequence[Request], decoding: Sequence[Request], most: int = MAX_RUNNING
    ) -> list[Request]:
        """Take requests from the queue as far as there is room, each with a sequence. End those that can never fit.

        most: how many may run at once.
        """
        admitted: list[Request] = []
        passed: list[Request] = []  # those that do not fit
        for request in list(self.waiting):
            reading = [*admitted, *prefilling]
            running = [*reading, *decoding]
            if len(running) >= most or any(other.overtaken >= MAX_OVERTAKEN for other in passed):
                break
            if self._is_being_prefilled(request, reading):
                continue  # it will start from what another request computes right now
            sequence = self._begun(request, running, decoding)
            if sequence is None and not running and self._held.give_way():
                sequence = self._begun(request, running, decoding)
            if sequence is not None:
                for other in passed:
                    other.overtaken += 1
                self.waiting.remove(request)
                request.sequence = sequence
                if not request.preemptions:
                    request.cached_tokens = sequence.num_tokens
                    request.prefix = self.loaded.match(request.keys)
                admitted.append(request)
            elif not running or self._never_fits(request):  # nothing will make room
                self.refuse(request)
            else:
                self._note_wait(request)
                passed.append(request)
                if len(passed) > MAX_OVERTAKEN:  # bounds the work of one step
                    break
        return admitted

    def who_leaves(self, request: Request, running: Sequence[Request]) -> Request:
        """Return the request that has to leave when a running one finds no room for its next tokens: the youngest.

        A request that runs alone and finds no room is as long as the cache can hold: it ends here, finished.
        """
        if len(running) > 1:
            return max(running, key=lambda other: other.arrival)
        if request.answer_ids:
            request.finish("length")
        else:
            self.refuse(request)
        return request

    def preempt(self, request: Request) -> None:
        """Put a running request back into the queue."""
        self.release(request)
        request.preemptions += 1
        self.preemptions += 1
        insort(self.waiting, request, key=lambda other: other.arrival)
        logger.info("preempted request %d after %d tokens: the KV cache is full", request.arrival, len(request.ids))

    def release(self, request: Request) -> None:
        """Take back a request's sequence; what was computed of it stays in the prefix cache."""
        if (sequence := request.sequence) is not None:
            if not self._shares_answers:
                sequence.trim(min(sequence.num_tokens, request.num_prompt_tokens))
            if self.last is None:
                self.prefixes.insert(request.keys, sequence, whole=True)
            else:
                self.last.note(request.keys, sequence)
            sequence.free()
            request.sequence = None

    def forget(self, request: Request) -> None:
        """Drop a finished request, whether it ran or not."""
        if request in self.waiting:
            self.waiting.remove(request)
        self.release(request)
        self._held_up.discard(request.arrival)

    def refuse(self, request: Request) -> None:
        """End a request that has no room even when it runs alone, and has no answer yet."""
        pool, stats = self._pool, self.prefixes.stats
        tokens = len(request.ids) + 1 if request.settings.max_new_tokens is None else request.max_tokens
        error = ContextLengthError(
            f"prompt and answer may take {tokens} tokens, that is {pool.blocks_for(tokens)} blocks of the KV cache; "
            f"it has {pool.num_blocks} for {pool.max_tokens} tokens ({pool.bytes:,} bytes), of which "
            f"{stats.pinned_blocks} are pinned; lower max_new_tokens, unpin a prefix, or load with a larger "
            "kv_cache_bytes"
        )
        logger.info("refused: %s", error)
        request.fail(error)

    def _note_wait(self, request: Request) -> None:
        if request.arrival not in self._held_up:
            self._held_up.add(request.arrival)
            logger.info("request %d of %d tokens waits for room in the KV cache", request.arrival, len(request.ids))

    def _is_being_prefilled(self, request: Request, reading: Sequence[Request]) -> bool:
        """Whether much of a request that is not in the cache yet is being computed for another one."""
        if not reading or not (self._info.can_fork and self._info.can_trim):
            return False
        limit = self._sharable(request)
        kept = min(self.prefixes.count_match(request.keys), limit)
        return any(min(common_prefix(other.keys, request.keys), limit) >= kept + WORTH_WAITING for other in reading)

    def _begun(self, request: Request, running: Sequence[Request], decoding: Sequence[Request]) -> CacheSequence | None:
        """Return a sequence for a request to start from; None if it has no room now."""
        if not self._fits(request, running):
            return None
        return self._start(request, self._sharable(request), decoding)

    def _fits(self, request: Request, running: Sequence[Request]) -> bool:
        """Whether a request's tokens so far have room, and each answer, this one included, has a block to grow into."""
        if self._never_fits(request):
            return False
        pool, needed = self._pool, self._blocks_now(request)
        shared, evictable = self.prefixes.room(request.keys, self._sharable(request))
        promised = 0
        for other in running:
            assert other.sequence is not None
            held = max(len(other.sequence.block_table), self._blocks_now(other))
            promised += held - len(other.sequence.block_table) + (pool.blocks_for(other.max_tokens) > held)
        if running:
            needed += pool.blocks_for(request.max_tokens) > needed
        if needed - shared > pool.num_free + evictable - promised:
            return False
        return not pool.counts_tokens or self._tokens_fit(request, running)

    def _tokens_fit(self, request: Request, running: Sequence[Request]) -> bool:
        """Answer the same for a pool that counts tokens: each answer has some tokens to grow into."""
        promised = 0
        for other in running:
            assert other.sequence is not None
            held = sum(map(self._pool.filled, other.sequence.block_table))
            promised += max(min(len(other.ids) + GROWTH, other.max_tokens) - held, 0)
        needed = min(len(request.ids) + (GROWTH if running else 1), request.max_tokens)
        return needed <= self._pool.num_free_tokens + self.prefixes.evictable[1] - promised

    def _sharable(self, request: Request) -> int:
        """Return how many of a request's first tokens may come from elsewhere.

        The last one is always computed, since its logits choose the next, and so is all that a prompt's
        log-probabilities are to be made of. If bits count, what a preempted answer had written is computed again the
        way it was.
        """
        last = request.first_needed
        return last if self._shares_answers else min(last, request.num_prompt_tokens)

    def _blocks_now(self, request: Request) -> int:
        """Return how many blocks a request's tokens and the next one take."""
        return self._pool.blocks_for(min(len(request.ids) + 1, request.max_tokens))

    def _never_fits(self, request: Request) -> bool:
        """Whether a request asks for more than the pool can hold beside pinned blocks, even if it runs alone."""
        if request.settings.max_new_tokens is None:
            return False
        missing = self._pool.blocks_for(request.max_tokens)
        allowed = self._pool.num_blocks - self.prefixes.stats.pinned_blocks
        if missing > allowed and missing - self.prefixes.room(request.keys, self._sharable(request))[0] > allowed:
            return True
        left = self._pool.max_tokens - self.prefixes.num_pinned_tokens
        return self._pool.counts_tokens and request.max_tokens > left

    def _start(self, request: Request, limit: int, decoding: Sequence[Request]) -> CacheSequence | None:
        """Return a sequence with as many of the first `limit` tokens as another sequence, the cache or a snapshot has.

        None if there is no room for the copies that this takes.
        """
        keys = request.keys
        if self.last is not None:
            sequence = self.last.start(keys, limit)
            if sequence is not None:
                self.prefixes.count_lookup(len(keys), sequence.num_tokens)
            return sequence
        kept = min(self.prefixes.count_match(keys), limit)
        in_use, running = self._longest_running(keys, limit, decoding)
        in_file, stored = self.loaded.longest_file(keys, limit)
        if running is not None and in_use > max(kept, in_file):
            sequence = _forked(running, in_use)
        elif stored is not None and in_file > kept:
            try:
                sequence = stored.restore(self._pool, in_file)
            except SnapshotError as error:  # the file was overwritten; what it held can be computed
                logger.warning("%s", error)
                self.loaded.snapshots.remove(stored)
                return self._start(request, limit, decoding)
            except CacheFullError:
                return None
        else:
            return self.prefixes.match(keys, limit)
        if sequence is not None:
            self.prefixes.count_lookup(len(keys), sequence.num_tokens)
        return sequence

    def _longest_running(
        self, keys: list[int], limit: int, decoding: Sequence[Request]
    ) -> tuple[int, CacheSequence | None]:
        """Return how many of the first `limit` keys a running answer's sequence shares at most, and that sequence."""
        best: tuple[int, CacheSequence | None] = (0, None)
        if not (self._info.can_fork and self._info.can_trim):
            return best
        for other in decoding:
            sharable = other.keys[: -1 if self._shares_answers else other.num_prompt_tokens]
            shared = min(common_prefix(sharable, keys), limit)
            if other.sequence is not None and shared > best[0]:
                best = shared, other.sequence
        return best


def _forked(other: CacheSequence, num_tokens: int) -> CacheSequence | None:
    """Return a sequence with the first tokens of another one, ready to append; None if there is no room for that."""
    sequence = other.fork()
    sequence.trim(num_tokens)
    try:
        sequence.reserve(1)  # copies a shared block while there is room for the copy
    except CacheFullError:
        sequence.free()
        return None
    sequence.trim(num_tokens)
    return sequence
