"""Whether a source of drafts is asked, and what was learned of it.

In: sources, and what a step costs. Out: proposals, and how many of their ids are worth a step. Knows nothing about
where sources have their ids from.

A source that costs time is asked only if what it usually gets right promises more than what is there already. One that
has been given up is asked again now and then: the time for that is a hundredth of what plain steps take.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from edge.runtime.speculation.cost import StepCost
from edge.runtime.speculation.source import DraftSource, Proposal

LONGEST = 16  # ids that a source is asked for, which each cost it time
FREE = 6  # ids that a source is asked for that copies them, whatever was right before: some buckets are better
EXPLORING = 0.01  # of the time of plain steps
_FIRST = 0.7  # chance of an id before a source was ever asked
_WEIGHT = 3.0  # of that, and of priors, in ids
_DECAY = 0.98  # of earlier counts with each new id: about the last 50 matter


class SourceRecord:
    """How often ids of a source were right, by bucket and in all: shared by the answers of one model."""

    def __init__(self, priors: Sequence[float]) -> None:
        self._counts = [[_WEIGHT * prior, _WEIGHT * (1 - prior), prior] for prior in (*priors, _FIRST)]
        self.budget_ms = 0.0  # for asking although it does not seem to pay

    @property
    def chance(self) -> float:
        """Of any id, given that those before it were right."""
        return self.chances([-1])[0]

    def chances(self, buckets: Sequence[int]) -> list[float]:
        """Of ids in these buckets."""
        return [self._counts[i][0] / (self._counts[i][0] + self._counts[i][1]) for i in buckets]

    def learn(self, proposal: Proposal, written: Sequence[int]) -> None:
        """Compare a proposal with what the model wrote, up to the first id that differs."""
        for drafted, bucket, token_id in zip(proposal.ids, proposal.buckets, written, strict=False):
            for index in (bucket, -1):
                right, wrong, prior = self._counts[index]
                pull = (1 - _DECAY) * _WEIGHT  # what decays of the prior comes back
                is_right = drafted == token_id
                self._counts[index][:2] = [
                    right * _DECAY + pull * prior + is_right,
                    wrong * _DECAY + pull * (1 - prior) + (not is_right),
                ]
            if not is_right:
                break


def best_length(
    chances: Sequence[float], plain: int, cost: StepCost, making: Sequence[float] = ()
) -> tuple[float, int]:
    """Return the best speed-up over a step of `plain` rows, and how many drafted ids give it; zeros without any.

    Tokens of a step with n drafted ids: 1 + p₁ + p₁p₂ + ... + p₁...pₙ. making: ms that so many ids still take to draft.
    """
    plain_ms = cost.ms(plain)
    best, count, reached, tokens = 0.0, 0, 1.0, float(plain)
    for i, chance in enumerate(chances, start=1):
        reached *= chance
        tokens += reached
        gain = tokens * plain_ms / (plain * (cost.ms(plain + i) + (making[i - 1] if making else 0.0)))
        if gain > best:
            best, count = gain, i
    return best, count


def ask(
    source: DraftSource, record: SourceRecord, room: int, forced: Sequence[int], cost: StepCost, best_gain: float
) -> Proposal | None:
    """Return what a source proposes, if it is to be asked: it may gain more than `best_gain`, or is given a try."""
    plain = len(forced) + 1
    most = min(room, LONGEST)
    if most < 1:
        return None
    making_most = source.cost_ms(most)
    if not making_most:
        return source.propose(min(most, FREE), forced)
    making = [*(source.cost_ms(i) for i in range(1, most)), making_most]
    gain, count = best_length([record.chance] * most, plain, cost, making)
    explores = gain <= best_gain
    if explores:
        record.budget_ms += EXPLORING * cost.ms(plain)
        if making[0] > record.budget_ms:
            return None
        count = 1
    started = time.perf_counter()
    found = source.propose(count, forced)
    if explores:
        record.budget_ms -= max((time.perf_counter() - started) * 1000, making[0])
    return found
