"""Drafts of a second, smaller model that reads the same token ids.

In: an engine; the ids of an answer as they are accepted, and how its tokens are chosen. Out: the ids that the second
model would choose next, with how sure it is of each. Knows nothing about the model that verifies them, or the policy.

The answer's n-th token is drawn with its n-th random number, and so is the draft of it: where the two models agree in
their distributions, they then agree in the token, however random it is. At temperature 0 both take the best one.

One sequence is kept in the second model's cache for all answers. Whoever drafts next cuts it down to what its own ids
share with it, so nothing has to be told when answers begin, end or take turns, and a conversation is read once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from statistics import median

import numpy as np

from edge.runtime.arrays import Logits
from edge.runtime.engines.engine import Engine, Step, StepInterrupted
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.kv.prefix import common_prefix
from edge.runtime.sampling import Sampler, draw, truncate
from edge.runtime.settings import Sampling
from edge.runtime.speculation.cost import StepCost
from edge.runtime.speculation.source import Proposal

NAME = "model"
AT_ONCE = 128  # ids of a prompt that are read between two tokens of the answer, which delays the second one: ...
_LEAST_AT_ONCE, _DELAY_MS = 32, 500.0  # ... fewer if they take longer than this, but so many for the kernels' sake
FEW = 16  # ids that are computed as a step of decoding; more are read as a prompt is
SPREAD = 64  # tokens of an answer over which reading its prompt counts
_RECENT = 9  # readings whose median is what a token takes

# What tells beforehand whether a draft is right. Greedy: the probability that the second model gives it. Sampled: how
# far the random number is from the edges of the token's share of the distribution, 0.5 at most.
_SURE = (0.3, 0.5, 0.7, 0.85, 0.95)
_INSIDE = (0.01, 0.03, 0.08, 0.16, 0.3)
_PRIORS = (0.25, 0.4, 0.6, 0.75, 0.85, 0.95, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95)


class ModelDrafts:
    """A second model, for all answers of the first: a `SourceMaker`. Owns the engine."""

    def __init__(self, engine: Engine, num_tokens: int) -> None:
        """num_tokens: of the tokenizer; logits beyond them are padding."""
        self.engine, self.num_tokens = engine, num_tokens
        self._cost = StepCost(engine.info.least_rows)
        self._read_ms: list[float] = []  # of a token, the latest readings
        self._sequence: CacheSequence | None = None
        self._held: list[int] = []  # the ids that it holds
        self.changes = 0  # how often they became others
        self._failed = False
        self._interrupted = self._ended = False

    def source(self, prompt_ids: Sequence[int], sampling: Sampling) -> ModelSource | None:
        """None once the engine has failed: a draft never ends an answer."""
        return None if self._failed else ModelSource(self, prompt_ids, sampling)

    @property
    def num_held(self) -> int:
        """How many ids are computed, after those of whoever drafted last."""
        return len(self._held)

    def shared(self, ids: Sequence[int], known: int = 0) -> int:
        """How many of these ids are computed already. known: so many of them surely are."""
        return known + common_prefix(tuple(self._held[known:]), tuple(ids[known:]))

    def expected_ms(self, missing: int, most: int) -> list[float]:
        """What proposing 1, 2, ... `most` ids takes if so many have to be read before."""
        reading = median(self._read_ms) * max(missing - FEW, 0) / SPREAD if self._read_ms else 0.0
        first = reading + self._cost.ms(min(max(missing, 1), FEW))
        return [first + self._cost.ms(1) * i for i in range(most)]

    def begin(self) -> None:
        """Forget an interrupt that was meant for earlier drafts."""
        self._interrupted = self._ended

    def interrupt(self, *, final: bool) -> None:
        """End a draft before its next inference, and the one that runs as its engine can."""
        self._ended = self._ended or final
        self._interrupted = True
        self.engine.interrupt(final=final)

    def row(self, ids: Sequence[int], shared: int) -> Logits | None:
        """Compute what is missing after the first `shared` ids; return the last one's logits.

        None if there is no room for them, if not all were computed yet, or after a failure. Raises StepInterrupted.
        """
        if self._failed or len(ids) > self.engine.info.max_context:
            return None
        if self._interrupted:
            raise StepInterrupted
        try:
            return self._computed(ids, min(shared, len(ids) - 1))
        except StepInterrupted:
            raise
        except Exception as error:  # of any library
            logging.getLogger(__name__).warning("the draft model failed, so it drafts no more: %s", error)
            self._failed = True
            return None

    def _computed(self, ids: Sequence[int], shared: int) -> Logits | None:
        started = time.perf_counter()
        if self._sequence is None:
            self._sequence = CacheSequence(self.engine.pool)
        self.changes += 1
        self._sequence.trim(min(shared, self._sequence.num_tokens))
        del self._held[self._sequence.num_tokens :]
        new = np.array(ids[len(self._held) :][: self._at_once()], np.int64)
        few = new.size <= min(FEW, self.engine.info.max_step_rows or FEW)
        if few:
            logits = self.engine.decode([Step(self._sequence, new)])[0]
        else:
            logits = self.engine.forward(new, self._sequence, np.array([new.size - 1], np.int64))
        self._held += new.tolist()
        ms = max((time.perf_counter() - started) * 1000, 1e-3)
        if few:
            self._cost.record(new.size, ms)
        else:
            self._read_ms = [*self._read_ms, ms / new.size][-_RECENT:]
        row: Logits = logits[-1, : self.num_tokens]
        return row if len(self._held) == len(ids) else None

    def _at_once(self) -> int:
        return min(AT_ONCE, max(_LEAST_AT_ONCE, int(_DELAY_MS / median(self._read_ms)))) if self._read_ms else AT_ONCE

    def close(self) -> None:
        self.engine.close()


def model_drafts(engine: Engine | None, num_tokens: int) -> list[ModelDrafts]:
    """What drafts with a second model, if there is one."""
    return [] if engine is None else [ModelDrafts(engine, num_tokens)]


class ModelSource:
    """The second model's drafts for one answer: a `DraftSource`."""

    name = NAME
    priors = _PRIORS

    def __init__(self, model: ModelDrafts, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        self._model, self._sampling = model, sampling
        self._num_prompt_tokens = len(prompt_ids)
        self._ids: list[int] = []
        self._known = 0  # of these ids, the model holds the first ones, ...
        self._changes = 0  # ... after so many changes of what it holds
        self._sampler = Sampler(sampling, prompt_ids, model.num_tokens)
        self._random = np.random.default_rng(sampling.seed)
        self._numbers: list[float] = []  # of the answer's tokens

    def extend(self, ids: Sequence[int]) -> None:
        for token_id in ids[max(self._num_prompt_tokens - len(self._ids), 0) :]:
            self._sampler.observe(token_id)
        self._ids += ids

    def costs_ms(self, most: int) -> Sequence[float]:
        return self._model.expected_ms(self._missing(), most)

    def propose(self, count: int, forced: Sequence[int] = ()) -> Proposal | None:
        started = time.perf_counter()
        ids, certain, missing = self._ids, len(self._ids), self._missing()
        self._model.begin()
        buckets: list[int] = []
        ids += forced
        begin = len(ids)
        try:
            while len(buckets) < count and (row := self._next_row()) is not None:
                token_id, bucket = self._choose(row)
                ids.append(token_id)
                buckets.append(bucket)
                if bucket in (0, len(_SURE) + 1):
                    break  # what follows a guess is one as well
            drafted = ids[begin:]
        finally:
            del ids[certain:]
            self._known = min(self._known, certain)
        if not drafted:
            return None
        ms = (time.perf_counter() - started) * 1000
        return Proposal(drafted, buckets, ms if missing <= FEW else self._model.expected_ms(missing, len(drafted))[-1])

    def close(self) -> None:
        """Nothing is this answer's alone."""

    def _missing(self) -> int:
        """How many ids the model would have to read. They are compared once, until others draft."""
        if self._changes != self._model.changes:
            self._known, self._changes = 0, self._model.changes
        self._known = self._model.shared(self._ids, self._known)
        return len(self._ids) - self._known

    def _next_row(self) -> Logits | None:
        row = self._model.row(self._ids, len(self._ids) - self._missing())
        if self._changes != self._model.changes:  # by what was just read
            self._known, self._changes = self._model.num_held, self._model.changes
        return row

    def _choose(self, row: Logits) -> tuple[int, int]:
        """Return the id that the answer's own sampler would choose from a row, and its bucket.

        Penalties count what is certain, and not the ids of this draft.
        """
        processed = self._sampler.process(row)
        if self._sampling.temperature == 0:
            token_id = int(processed.argmax())
            chance = 1 / float(np.exp(processed - processed[token_id]).sum())
            return token_id, int(np.searchsorted(_SURE, chance))
        drawn = draw(truncate(processed, self._sampling), self._number(len(self._ids) - self._num_prompt_tokens))
        return drawn.token_id, len(_SURE) + 1 + int(np.searchsorted(_INSIDE, drawn.margin))

    def _number(self, place: int) -> float:
        """The random number that the answer's token at this place is drawn with."""
        while len(self._numbers) <= place:
            self._numbers.append(self._random.random())
        return self._numbers[place]
