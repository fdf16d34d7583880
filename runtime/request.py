"""One answer in progress: its prompt, the tokens chosen so far, and the chunks made from them.

In: a prompt and settings; then logits, step by step. Out: chunks. Knows nothing about engines, or what else runs.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from edge.runtime.arrays import Ids, Logits
from edge.runtime.chunk import Chunk, FinishReason, PromptRead, Stats, StoppedBy
from edge.runtime.constraint_masks import ConstraintState
from edge.runtime.detokenizer import Detokenizer
from edge.runtime.engines.engine import Inputs
from edge.runtime.errors import ContextLengthError, EdgeError, PromptError, SettingsError
from edge.runtime.kv.loaded import PrefixMatch
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.logprobs import TokenLogprob, token_logprob
from edge.runtime.prompt import Prompt
from edge.runtime.sampling import Sampler, check_finite
from edge.runtime.settings import GenerationSettings
from edge.runtime.speculation import Drafter
from edge.runtime.stops import StopStrings
from edge.runtime.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class Request:
    """A prompt and its answer so far.

    The scheduler owns `sequence`, `arrival`, `overtaken`, `skipped` and `preemptions`. A reader takes `chunks`, or sets
    `cancelled` to end the answer; any thread may touch these two. An answer whose `reader` no longer exists ends, too:
    this takes no clean-up code, which an interrupt could skip.
    """

    def __init__(
        self,
        prompt: Prompt,
        settings: GenerationSettings,
        tokenizer: Tokenizer,
        stop_ids: Collection[int],
        max_context: int,
        constraint: ConstraintState | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """Raises PromptError, ContextLengthError and SettingsError for a request that cannot be run."""
        check_prompt(prompt, tokenizer, max_context, least_new_tokens=0 if settings.max_new_tokens == 0 else 1)
        self.prompt = prompt
        self.ids = list(prompt.ids)  # of prompt and answer
        self.keys = list(prompt.cache_keys)  # likewise, for the cache
        self.num_prompt_tokens = len(self.ids) - prompt.num_answered
        limit = settings.max_new_tokens
        # Most tokens of prompt and answer together.
        self.max_tokens = max_context if limit is None else min(self.num_prompt_tokens + limit, max_context)
        self.settings = settings
        self.drafter = drafter
        self.constraint = constraint
        self.sequence: CacheSequence | None = None  # holds the first num_tokens of ids
        self.cached_tokens = 0
        self.prefix: PrefixMatch | None = None  # what it has of the prefixes that the model was given
        self.arrival = -1  # its place among all requests
        self.overtaken = 0  # how many later ones were admitted while this one waited
        self.skipped = 0  # steps in a row in which no token of its prompt was computed
        self.preemptions = 0
        self.prompt_logprobs: list[TokenLogprob | None] = [None]  # of the first tokens, if they are wanted
        self.chunks: deque[Chunk] = deque()
        self.error: EdgeError | None = None
        self.finished = False
        self.cancelled = False
        self.reader: weakref.ref[object] | None = None
        self._num_tokens = tokenizer.num_tokens  # the embedding's padding rows after these are never chosen
        self._stop_ids = frozenset(stop_ids) | frozenset(settings.stop_token_ids)
        self._sampler = Sampler(settings.sampling, self.ids[: self.num_prompt_tokens], tokenizer.num_tokens)
        self._detokenizer, self._stops = Detokenizer(tokenizer), StopStrings(settings.stop)
        self._started = time.perf_counter()
        self._told_reading = False
        self._told_prompt = False  # whether its log-probabilities were delivered
        self._first_step: tuple[float, int] | None = None  # when it ended, and its tokens
        if prompt.num_answered:
            self._take_over(self.answer_ids)

    @property
    def answer_ids(self) -> list[int]:
        """The ids chosen so far."""
        return self.ids[self.num_prompt_tokens :]

    @property
    def remaining(self) -> int:
        """How many tokens may still be chosen."""
        return self.max_tokens - len(self.ids)

    @property
    def first_needed(self) -> int:
        """The index of the first token whose logits are needed: to choose the next one, or to score it."""
        if self.settings.prompt_logprobs is not None and len(self.prompt_logprobs) < self.num_prompt_tokens:
            return len(self.prompt_logprobs) - 1
        return len(self.ids) - 1

    def score(self, rows: Logits) -> None:
        """Take the log-probabilities of the prompt's next tokens. rows: (n, vocab), of the tokens before them.

        Raises DeviceError for logits that are not finite.
        """
        assert self.settings.prompt_logprobs is not None
        for row in rows[:, : self._num_tokens]:
            check_finite(row)
            token_id = self.ids[len(self.prompt_logprobs)]
            self.prompt_logprobs.append(token_logprob(row, token_id, self.settings.prompt_logprobs))

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        deadline_s = self.settings.deadline_s
        return deadline_s is not None and time.perf_counter() - self._started > deadline_s

    @property
    def unwanted(self) -> bool:
        """Whether no reader wants more."""
        return self.cancelled or (self.reader is not None and self.reader() is None)

    @property
    def has_news(self) -> bool:
        """Whether a reader finds a chunk or the end."""
        return bool(self.chunks) or self.finished or self.cancelled

    def inputs(self, begin: int, end: int) -> Inputs:
        """Return positions and embeddings of the tokens from `begin` up to `end`, which ids do not tell."""
        inside = self.prompt.inputs(begin, min(end, self.num_prompt_tokens))
        if self.prompt.positions is None or end <= self.num_prompt_tokens:
            return inside
        begin = max(begin, self.num_prompt_tokens)
        first = self.prompt.next_position - self.num_prompt_tokens
        later = np.arange(first + begin, first + end, dtype=np.int64)  # the same in each row
        before = inside.positions
        assert before is not None
        later = np.broadcast_to(later, (*before.shape[:-1], later.size))
        return Inputs(np.concatenate([before, later], axis=-1), inside.embeddings)

    def positions(self, begin: int, count: int) -> Ids | None:
        """Return the positions of `count` tokens of the answer from `begin` on; None if they are their indices."""
        return None if self.prompt.positions is None else self.inputs(begin, begin + count).positions

    def draft(self) -> list[int]:
        """Return ids that the next step should verify, after the last one chosen."""
        if self.drafter is None:
            return []
        forced = () if self.constraint is None else self.constraint.forced()
        return self.drafter.draft(self.remaining, forced)

    def accept(self, rows: Logits, draft: Sequence[int] = ()) -> None:
        """Choose a token from each row in turn, for as long as it is the drafted one.

        rows: (1 + drafted, vocab). An answer that may have no tokens ends here. Raises EdgeError if a constraint cannot
        be followed, and DeviceError for logits that are not finite.
        """
        if self.remaining <= 0:
            self._first_step = (time.perf_counter(), 0)
            self.finish("length")
            return
        taken: list[int] = []
        logprobs: list[TokenLogprob] = []
        text = ""
        reason: FinishReason | None = None
        stopped_by: StoppedBy | None = None
        i = 0
        try:
            for i, row in enumerate(rows[:, : self._num_tokens]):
                check_finite(row)
                token_id = self._choose(row)
                taken.append(token_id)
                self.ids.append(token_id)
                self.keys.append(token_id)
                if self.settings.logprobs is not None:
                    logprobs.append(token_logprob(row, token_id, self.settings.logprobs))
                is_stop = token_id in self._stop_ids and not self.settings.ignore_stop_ids
                if not is_stop:
                    text += self._stops.push(self._detokenizer.push(token_id))
                stopped_by = self._stop_after(token_id, is_stop)
                reason = "stop" if stopped_by is not None else None if self.remaining > 0 else "length"
                if reason is not None or i == len(draft) or token_id != draft[i]:
                    break
        except BaseException:
            if i:  # right drafts before the token that could not be chosen
                self._deliver(Chunk(text, tuple(taken[:i]), tuple(logprobs[:i])))
            raise
        if self._first_step is None:
            self._first_step = (time.perf_counter(), len(taken))
        if self.drafter is not None:
            self.drafter.observe(taken, len(draft))
        if reason is None:
            self._deliver(Chunk(text, tuple(taken), tuple(logprobs)))
        else:
            self.finish(reason, text, taken, logprobs, stopped_by)

    def finish(
        self,
        reason: FinishReason,
        text: str = "",
        token_ids: Sequence[int] = (),
        logprobs: Sequence[TokenLogprob] = (),
        stopped_by: StoppedBy | None = None,
    ) -> None:
        """End the answer with its last chunk."""
        if not self._stops.stopped:
            text += self._stops.push(self._detokenizer.finish()) + self._stops.finish()
        self._deliver(
            Chunk(
                text,
                tuple(token_ids),
                tuple(logprobs),
                finish_reason=reason,
                stopped_by=stopped_by,
                stats=self._stats(),
            )
        )
        self._end()

    def _deliver(self, chunk: Chunk) -> None:
        """Put a chunk where its reader finds it; the first one after the prompt was read tells of the prompt, too."""
        if self.settings.prompt_logprobs is not None and not self._told_prompt:
            if len(self.prompt_logprobs) == self.num_prompt_tokens:
                chunk = replace(chunk, prompt_logprobs=tuple(self.prompt_logprobs))
            self._told_prompt = True
        if self._first_step is not None and not self._told_reading:
            ms = (self._first_step[0] - self._started) * 1000
            chunk = replace(chunk, prompt_read=PromptRead(self.num_prompt_tokens, self.cached_tokens, ms))
            self._told_reading = True
        self.chunks.append(chunk)

    def fail(self, error: EdgeError) -> None:
        """End the answer with an error for its reader."""
        self.error = error
        self._end()

    def _end(self) -> None:
        self.finished = True
        try:
            if self.drafter is not None:
                self.drafter.close()
        except BaseException:  # also from libraries in Rust; the answer is whole without it
            logger.exception("what drafted for a finished answer could not be closed")

    def _choose(self, row: Logits) -> int:
        logits = self._sampler.process(row)
        if self.constraint is not None:
            logits = self.constraint.mask(logits)
        if len(self.ids) - self.num_prompt_tokens < self.settings.min_new_tokens:
            logits = logits.copy()
            logits[[i for i in self._stop_ids if i < logits.size]] = -np.inf
            if self.constraint is not None and not np.isfinite(logits).any():
                raise SettingsError(
                    f"the constraint ends before min_new_tokens, {self.settings.min_new_tokens}", param="min_new_tokens"
                )
        token_id = self._sampler.choose(logits)
        self._sampler.observe(token_id)
        if self.constraint is not None:
            self.constraint.advance(token_id)
        return token_id

    def _take_over(self, chosen: Sequence[int]) -> None:
        """Become what another run of this request was after choosing these, which its reader has been told."""
        self._sampler.skip(len(chosen))
        for token_id in chosen:
            self._sampler.observe(token_id)
            if self.constraint is not None:
                self.constraint.advance(token_id)
            self._stops.push(self._detokenizer.push(token_id))
        self._told_reading = self._told_prompt = True

    def _stop_after(self, token_id: int, is_stop: bool) -> StoppedBy | None:
        """Return what stopped the answer after this token, or None if it continues."""
        if is_stop:
            return StoppedBy(token_id=token_id)
        if self._stops.found is not None:
            return StoppedBy(text=self._stops.found)
        return StoppedBy() if self.constraint is not None and self.constraint.finished else None

    def _stats(self) -> Stats:
        first_at, first_tokens = self._first_step or (self._started, 0)
        new = len(self.ids) - self.num_prompt_tokens
        later = new - first_tokens
        return Stats(
            prompt_tokens=self.num_prompt_tokens,
            cached_tokens=self.cached_tokens,
            new_tokens=new,
            ttft_ms=(first_at - self._started) * 1000,
            tpot_ms=(time.perf_counter() - first_at) * 1000 / later if later else 0.0,
            drafted_tokens=0 if self.drafter is None else self.drafter.drafted,
            accepted_tokens=0 if self.drafter is None else self.drafter.accepted,
            preemptions=self.preemptions,
            prefix=self.prefix,
        )


def check_prompt(prompt: Prompt, tokenizer: Tokenizer, max_context: int, *, least_new_tokens: int = 1) -> None:
    """Raise PromptError for an empty prompt or an unknown id, ContextLengthError if not one more token would fit.

    least_new_tokens: 0 if none has to fit.
    """
    count = len(prompt.ids)
    if not count:
        raise PromptError("the prompt is empty; give at least one token of text", param="prompt")
    if (largest := max(prompt.ids)) >= tokenizer.num_tokens:
        raise PromptError(
            f"token id {largest} is not in the vocabulary, expected 0 to {tokenizer.num_tokens - 1}", param="prompt"
        )
    if count + least_new_tokens > max_context:
        raise ContextLengthError(
            f"the prompt has {prompt.length_told} and the context holds {max_context}, the answer included; "
            "use a shorter prompt, or load with a larger max_context or KV cache",
            param="prompt",
        )
