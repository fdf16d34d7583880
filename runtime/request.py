"""One answer in the making: from rows of logits to token ids, text and frozen `Chunk`s.

In: prompt ids and settings, then the logits of one step after another. Out: chunks, the last of which carries a finish
reason and figures. Knows nothing about engines, and of the KV cache only that there is a sequence.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from edge.runtime.constraints import Constraint, ConstraintState
from edge.runtime.detokenizer import Detokenizer
from edge.runtime.errors import ContextLengthError, EdgeError, PromptError, SettingsError
from edge.runtime.kv.pool import Sequence as CachedSequence
from edge.runtime.logprobs import TokenLogprob, token_logprob
from edge.runtime.sampling import Sampler, Sampling
from edge.runtime.speculation import Drafter
from edge.runtime.stops import StopStrings
from edge.runtime.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "deadline", "cancelled", "error"]
MAX_LOGPROBS = 20  # alternatives a token, as in OpenAI's protocol


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """What one answer may be. Raises SettingsError for a value outside its range."""

    max_new_tokens: int = 512
    min_new_tokens: int = 0  # stop ids are not chosen before
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()  # stop strings, not shown; they may span tokens
    stop_token_ids: tuple[int, ...] = ()  # besides those of the model
    deadline_s: float | None = None  # seconds from the request
    ignore_stop_ids: bool = False  # for benchmarks: always generate max_new_tokens
    logprobs: int | None = None  # log-probabilities of the chosen tokens and of so many best ones; None: of none
    constraint: Constraint | None = None  # a JSON schema, regex or grammar that the text follows

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise SettingsError(f"max_new_tokens is {self.max_new_tokens}, expected 1 or more")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise SettingsError(
                f"min_new_tokens is {self.min_new_tokens}, expected 0 to max_new_tokens, {self.max_new_tokens}"
            )
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise SettingsError(f"deadline_s is {self.deadline_s}, expected a number of seconds above 0")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise SettingsError(f"logprobs is {self.logprobs}, expected 0 to {MAX_LOGPROBS}, or none")
        if negative := [token_id for token_id in self.stop_token_ids if token_id < 0]:
            raise SettingsError(f"stop_token_ids holds {negative[0]}, expected token ids, 0 or more")
        if self.constraint is not None and self.ignore_stop_ids:
            raise SettingsError("ignore_stop_ids goes on where a constraint ends the answer; give one of the two")
        StopStrings(self.stop)


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of one answer."""

    prompt_tokens: int
    cached_tokens: int  # prompt tokens that were in the KV cache already
    new_tokens: int
    ttft_ms: float  # from the request to the first token
    tpot_ms: float  # mean time per token after the first step; 0 where there is only one
    drafted_tokens: int = 0  # by speculation
    accepted_tokens: int = 0  # of those

    @property
    def tokens_per_second(self) -> float:
        """Decode speed; 0 where there is only one token."""
        return 1000 / self.tpot_ms if self.tpot_ms else 0.0


class Prefill(NamedTuple):
    """How much of a long prompt is read."""

    done: int  # tokens
    total: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one step added. Text can be empty while a character or a stop string is open, or a long prompt is read."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # of each token, where they were asked for
    prefill: Prefill | None = None  # while a long prompt is read
    finish_reason: FinishReason | None = None  # set on the last chunk only
    stats: Stats | None = None  # set on the last chunk only


class Request:
    """A prompt and what has come of it. The scheduler owns `sequence`; `chunks` are for whoever reads the answer."""

    def __init__(
        self,
        prompt_ids: list[int],
        settings: GenerationSettings,
        tokenizer: Tokenizer,
        stop_ids: Collection[int],
        max_context: int,
        constraint: ConstraintState | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """Raises PromptError, ContextLengthError and SettingsError for what cannot be run."""
        check_prompt(prompt_ids, tokenizer, max_context)
        self.ids = list(prompt_ids)  # of prompt and answer
        self.num_prompt_tokens = len(prompt_ids)
        self.max_tokens = min(len(prompt_ids) + settings.max_new_tokens, max_context)  # of prompt and answer
        self.settings = settings
        self.drafter = drafter
        self.constraint = constraint
        self.sequence: CachedSequence | None = None  # holds the first num_tokens of ids
        self.cached_tokens = 0
        self.chunks: deque[Chunk] = deque()
        self.error: EdgeError | None = None
        self.finished = False
        self.cancelled = False  # whoever reads the answer wants no more
        self._num_tokens = tokenizer.num_tokens  # padding rows of the embedding beyond it are never chosen
        self._stop_ids = frozenset(stop_ids) | frozenset(settings.stop_token_ids)
        self._sampler = Sampler(settings.sampling, prompt_ids, tokenizer.num_tokens)
        self._detokenizer, self._stops = Detokenizer(tokenizer), StopStrings(settings.stop)
        self._started = time.perf_counter()
        self._first_step: tuple[float, int] | None = None  # when it ended, and its tokens

    @property
    def answer_ids(self) -> list[int]:
        """Ids chosen so far."""
        return self.ids[self.num_prompt_tokens :]

    @property
    def remaining(self) -> int:
        """Tokens that may still be chosen."""
        return self.max_tokens - len(self.ids)

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        deadline_s = self.settings.deadline_s
        return deadline_s is not None and time.perf_counter() - self._started > deadline_s

    def draft(self) -> list[int]:
        """Ids that the next step should verify behind the last one chosen."""
        if self.drafter is None:
            return []
        forced = () if self.constraint is None else self.constraint.forced()
        return self.drafter.draft(self.remaining, forced)

    def accept(self, rows: npt.NDArray[np.float32], draft: Sequence[int] = ()) -> None:
        """Choose a token from one row after another, for as long as each is the one that was drafted.

        rows: (1 + drafted, vocab). Raises EdgeError where a constraint cannot be followed.
        """
        taken: list[int] = []
        logprobs: list[TokenLogprob] = []
        text, reason = "", None
        for i, row in enumerate(rows[:, : self._num_tokens]):
            token_id = self._choose(row)
            taken.append(token_id)
            self.ids.append(token_id)
            if self.settings.logprobs is not None:
                logprobs.append(token_logprob(row, token_id, self.settings.logprobs))
            is_stop = token_id in self._stop_ids and not self.settings.ignore_stop_ids
            if not is_stop:
                text += self._stops.push(self._detokenizer.push(token_id))
            reason = self._reason_to_end(is_stop)
            if reason is not None or i == len(draft) or token_id != draft[i]:
                break
        if self._first_step is None:
            self._first_step = (time.perf_counter(), len(taken))
        if self.drafter is not None:
            self.drafter.observe(taken, len(draft))
        if reason is None:
            self.chunks.append(Chunk(text, tuple(taken), tuple(logprobs)))
        else:
            self.finish(reason, text, taken, logprobs)

    def finish(
        self,
        reason: FinishReason,
        text: str = "",
        token_ids: Sequence[int] = (),
        logprobs: Sequence[TokenLogprob] = (),
    ) -> None:
        """End the answer: the last chunk."""
        if not self._stops.stopped:
            text += self._stops.push(self._detokenizer.finish()) + self._stops.finish()
        self.chunks.append(Chunk(text, tuple(token_ids), tuple(logprobs), None, reason, self._stats()))
        self.finished = True

    def fail(self, error: EdgeError) -> None:
        """End the answer with an error, which its reader will see."""
        self.error = error
        self.finished = True

    def _choose(self, row: npt.NDArray[np.float32]) -> int:
        logits = self._sampler.process(row)
        if self.constraint is not None:
            logits = self.constraint.mask(logits)
        if len(self.ids) - self.num_prompt_tokens < self.settings.min_new_tokens:
            logits = logits.copy()
            logits[[i for i in self._stop_ids if i < logits.size]] = -np.inf
            if self.constraint is not None and not np.isfinite(logits).any():
                raise SettingsError(f"the constraint ends before min_new_tokens, {self.settings.min_new_tokens}")
        token_id = self._sampler.choose(logits)
        self._sampler.observe(token_id)
        if self.constraint is not None:
            self.constraint.advance(token_id)
        return token_id

    def _reason_to_end(self, is_stop: bool) -> FinishReason | None:
        if is_stop or self._stops.stopped or (self.constraint is not None and self.constraint.finished):
            return "stop"
        return None if self.remaining else "length"

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
        )


def check_prompt(prompt_ids: list[int], tokenizer: Tokenizer, max_context: int) -> None:
    """Raises PromptError for an empty prompt or an unknown id, ContextLengthError when no token of answer would fit."""
    if not prompt_ids:
        raise PromptError("the prompt is empty; give at least one token of text")
    if unknown := [i for i in prompt_ids if not 0 <= i < tokenizer.num_tokens]:
        raise PromptError(f"token id {unknown[0]} is not in the vocabulary, expected 0 to {tokenizer.num_tokens - 1}")
    if len(prompt_ids) >= max_context:
        raise ContextLengthError(
            f"the prompt has {len(prompt_ids)} tokens and the context holds {max_context}, the answer included; "
            "use a shorter prompt, or load with a larger max_context or KV cache"
        )
