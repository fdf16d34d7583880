"""The streaming generator, in three layers: token ids -> text -> one frozen `Chunk`.

In: an engine, a sequence, prompt ids and settings. Out: chunks, as an iterator that can be closed, interrupted or run
out of time between any two tokens; the cache then holds exactly what was computed. Knows nothing about chat templates
or bundles.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from edge.runtime.detokenizer import Detokenizer
from edge.runtime.engines import Engine
from edge.runtime.errors import ContextLengthError, PromptError, SettingsError
from edge.runtime.kv.pool import Sequence
from edge.runtime.sampling import Sampling, sample
from edge.runtime.stops import StopStrings
from edge.runtime.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "deadline"]


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """What one answer may be. Raises SettingsError for a value outside its range."""

    max_new_tokens: int = 512
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()  # stop strings, not shown; they may span tokens
    deadline_s: float | None = None  # seconds from the start of the prefill
    ignore_stop_ids: bool = False  # for benchmarks: always generate max_new_tokens

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise SettingsError(f"max_new_tokens is {self.max_new_tokens}, expected 1 or more")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise SettingsError(f"deadline_s is {self.deadline_s}, expected a number of seconds above 0")
        StopStrings(self.stop)


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of one answer."""

    prompt_tokens: int
    cached_tokens: int  # prompt tokens that were in the KV cache already
    new_tokens: int
    ttft_ms: float  # from the request to the first token
    tpot_ms: float  # mean time per token after the first; 0 where there is only one

    @property
    def tokens_per_second(self) -> float:
        """Decode speed; 0 where there is only one token."""
        return 1000 / self.tpot_ms if self.tpot_ms else 0.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one step added. Text can be empty while a character or a stop string is open."""

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None  # set on the last chunk only
    stats: Stats | None = None  # set on the last chunk only


class Step(NamedTuple):
    """One generated token; the id is None when time ran out before there was one."""

    token_id: int | None
    finish_reason: FinishReason | None


def generate(
    engine: Engine,
    sequence: Sequence,
    history: list[int],
    prompt_ids: list[int],
    tokenizer: Tokenizer,
    stop_ids: Collection[int],
    settings: GenerationSettings,
) -> Generator[Chunk, None, None]:
    """Answer a prompt, chunk by chunk.

    `history` is what the caller remembers of `sequence`: its first `sequence.num_tokens` ids are the cached ones,
    before and after every step. What prompt and history share is not computed again. The last chunk carries the
    finish reason and the figures; a stop id is in its `token_ids` but not in its text.
    """
    started = time.perf_counter()
    cached = min(_common_prefix(history[: sequence.num_tokens], prompt_ids), len(prompt_ids) - 1)
    sequence.trim(cached)
    history[:] = prompt_ids

    detokenizer, stops = Detokenizer(tokenizer), StopStrings(settings.stop)
    first_token_at, count = 0.0, 0
    for step in generate_ids(engine, sequence, history, tokenizer.num_tokens, stop_ids, settings):
        text, reason = "", step.finish_reason
        if step.token_id is not None:
            count += 1
            first_token_at = first_token_at or time.perf_counter()
            if step.token_id not in stop_ids or settings.ignore_stop_ids:
                text = stops.push(detokenizer.push(step.token_id))
        if stops.stopped:
            reason = "stop"
        elif reason is not None:
            text += stops.push(detokenizer.finish()) + stops.finish()
        ids = () if step.token_id is None else (step.token_id,)
        if reason is None:
            yield Chunk(text, ids)
            continue
        elapsed_ms = (time.perf_counter() - first_token_at) * 1000 if first_token_at else 0.0
        stats = Stats(
            prompt_tokens=len(prompt_ids),
            cached_tokens=cached,
            new_tokens=count,
            ttft_ms=(first_token_at - started) * 1000 if first_token_at else 0.0,
            tpot_ms=elapsed_ms / (count - 1) if count > 1 else 0.0,
        )
        yield Chunk(text, ids, reason, stats)
        return


def check_prompt(prompt_ids: list[int], tokenizer: Tokenizer, max_context: int) -> None:
    """Raises PromptError for an empty prompt or an unknown id, ContextLengthError when no token of answer would fit."""
    if not prompt_ids:
        raise PromptError("the prompt is empty; give at least one token of text")
    if unknown := [i for i in prompt_ids if not 0 <= i < tokenizer.num_tokens]:
        raise PromptError(f"token id {unknown[0]} is not in the vocabulary, expected 0 to {tokenizer.num_tokens - 1}")
    if len(prompt_ids) >= max_context:
        raise ContextLengthError(
            f"the prompt has {len(prompt_ids)} tokens and the context holds {max_context}, the answer included; "
            "use a shorter prompt or load with a larger max_context"
        )


def generate_ids(
    engine: Engine,
    sequence: Sequence,
    history: list[int],
    num_tokens: int,
    stop_ids: Collection[int],
    settings: GenerationSettings,
) -> Iterator[Step]:
    """Run the ids of `history` that are not cached yet, then choose token after token, appending each to `history`.

    `num_tokens` is the tokenizer's size: padding rows of the embedding beyond it are never chosen.
    """
    deadline = float("inf") if settings.deadline_s is None else time.monotonic() + settings.deadline_s
    rng = settings.sampling.generator()
    budget = min(settings.max_new_tokens, engine.max_context - len(history))
    for remaining in range(budget, 0, -1):
        while sequence.num_tokens < len(history):  # the prompt in chunks, then one token a turn
            new = np.array(history[sequence.num_tokens :][: engine.prefill_chunk], np.int64)
            logits = engine.forward(new, sequence, np.array([new.size - 1], np.int64))[0]
            if time.monotonic() > deadline and sequence.num_tokens < len(history):
                yield Step(None, "deadline")
                return
        token_id = sample(logits[:num_tokens], history, settings.sampling, rng)
        history.append(token_id)
        if token_id in stop_ids and not settings.ignore_stop_ids:
            yield Step(token_id, "stop")
            return
        if remaining == 1:
            yield Step(token_id, "length")
            return
        if time.monotonic() > deadline:
            yield Step(token_id, "deadline")
            return
        yield Step(token_id, None)


def _common_prefix(a: list[int], b: list[int]) -> int:
    """How many leading ids are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
