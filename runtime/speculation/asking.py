"""Whether a source of drafts is asked, and how many of its ids are worth a step.

In: sources, what was learned of them, and what a step costs. Out: proposals, and the best length of one. Knows nothing
about where sources have their ids from.

A source that costs time is asked only if what it usually gets right promises more than what is there already. One that
has been given up is asked again now and then: the time for that is a hundredth of what plain steps take.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from edge.runtime.speculation.acceptance import SourceRecord
from edge.runtime.speculation.cost import StepCost
from edge.runtime.speculation.source import DraftSource, Proposal

LONGEST = 16  # ids that a source is asked for, which each cost it time
EXPLORING = 0.01  # of the time of plain steps


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
    """Return what a source proposes, if it is to be asked: it may gain more than `best_gain`, or is given a try.

    room: how many ids fit, 1 or more.
    """
    making = source.costs_ms(min(room, LONGEST))
    if not making:
        return source.propose(room, forced)
    plain = len(forced) + 1
    gain, count = best_length([record.chance] * len(making), plain, cost, making)
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
