"""How many tokens to draft for one running answer, and from where.

In: prompt ids, then the ids that each step appended. Out: drafted ids for the next step, or none if they would not pay.
Knows nothing about engines, sampling or files: the caller verifies drafts and reports the result.

Every source is asked that may pay (`asking`), and the draft whose expected speed-up is best is taken, as long as it is
worth its rows. Drafts that are not submitted are also compared with what the model wrote, so learning that they fail
costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edge.runtime.speculation.acceptance import Acceptance, SourceRecord
from edge.runtime.speculation.asking import ask, best_length
from edge.runtime.speculation.cost import StepCost
from edge.runtime.speculation.source import DraftSource, Proposal

_MIN_GAIN = 1.02  # least speed-up that a draft must promise, as the chances are estimates


class Drafter:
    """Drafts for one running answer: `draft`, verify, `observe`, and again.

    It closes its sources. `cost` and `acceptance` are learned; keep them for the next answer.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        sources: Sequence[DraftSource],
        cost: StepCost,
        acceptance: Acceptance,
        max_draft: int,
    ) -> None:
        """max_draft: ids of a step, with those that are forced."""
        self._cost, self._acceptance, self._max_draft = cost, acceptance, max_draft
        self._sources = [(source, acceptance.record_of(source)) for source in sources]
        self._proposals: list[tuple[SourceRecord, Proposal]] = []  # of the coming step, submitted or not
        self._forced: list[int] = []  # ids before them
        self.steps = 0
        self.drafted = 0  # ids that were verified
        self.accepted = 0  # ids of them that were right
        self._extend(prompt_ids)

    def draft(self, limit: int, forced: Sequence[int] = ()) -> list[int]:
        """Return ids to verify in the next step; with none, decode plainly.

        limit: how many tokens still fit. A step appends one more than it drafts, so at most limit - 1 ids are drafted.
        forced: ids that must come next (by a grammar); they come first, as many as fit.
        """
        self._proposals, self._forced = [], []
        room = min(limit - 1, self._max_draft)
        if room < 1:
            return []
        self._forced = list(forced[:room])
        best_gain, best = _MIN_GAIN if self._acceptance.pays else math.inf, self._forced.copy()
        room -= len(self._forced)
        for source, record in self._sources if room else ():
            found = ask(source, record, room, self._forced, self._cost, best_gain)
            if found is None:
                continue
            self._proposals.append((record, found))
            gain, count = best_length(record.chances(found.buckets), len(self._forced) + 1, self._cost)
            if gain > best_gain:
                best_gain, best = gain, self._forced + found.ids[:count]
        return best

    def observe(self, token_ids: list[int], drafted: int) -> None:
        """Learn from the ids that the last step appended, right drafts and the model's own. `drafted` were verified."""
        assert len(token_ids) <= drafted + 1, f"{len(token_ids)} tokens followed {drafted} drafted ones"
        self._extend(token_ids)
        self.steps += 1
        self.drafted += drafted
        self.accepted += max(len(token_ids) - 1, 0)
        self._acceptance.settle(self._saved(len(token_ids), drafted))
        written = token_ids[len(self._forced) :]
        for record, proposal in self._proposals:
            record.learn(proposal, written)
        self._proposals, self._forced = [], []

    def close(self) -> None:
        """Free what drafts of this answer held. A second call changes nothing."""
        while self._sources:
            self._sources.pop()[0].close()

    def _extend(self, ids: Sequence[int]) -> None:
        for source, _ in self._sources:
            source.extend(ids)

    def _saved(self, tokens: int, drafted: int) -> float:
        """Return how many plain steps fewer these tokens took than those that were forced alone."""
        forced = min(len(self._forced), drafted)
        made = sum(proposal.cost_ms for _, proposal in self._proposals)
        extra_ms = self._cost.ms(1 + drafted) - self._cost.ms(1 + forced) + made
        return max(tokens - 1 - forced, 0) - extra_ms / self._cost.ms(1)
