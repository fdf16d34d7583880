"""How often drafted ids were right, and whether drafts have paid lately.

In: what sources proposed and what the model wrote. Out: the chance that an id of a bucket is right; whether drafts go
on. Knows nothing about where ids come from or what a step costs.

Each bucket has a beta posterior: a prior that counts as a few ids, and decaying counts of what was seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge.runtime.speculation.source import DraftSource, Proposal

_FIRST = 0.7  # chance of an id before a source was ever asked
_WEIGHT = 3.0  # of that, and of priors, in ids
_DECAY = 0.98  # of earlier counts with each new id: about the last 50 matter

_MOST_LOST = 2.0  # plain steps that drafts may have cost on balance; then there are none, until ...
_MOST_WON = 8.0  # ... the balance, of which no more than this counts ...
_FORGOTTEN = 0.995  # ... has faded this much a step: a steady loss is a hundredth at most


class SourceRecord:
    """How often ids of a source were right, by bucket and in all."""

    def __init__(self, priors: Sequence[float]) -> None:
        self._priors = (*priors, _FIRST)
        self._counts = [[0.0, 0.0] for _ in self._priors]  # right and wrong; the last are of all buckets
        self.budget_ms = 0.0  # for asking although it does not seem to pay

    @property
    def chance(self) -> float:
        """Of any id, given that those before it were right."""
        return self.chances([-1])[0]

    def chances(self, buckets: Sequence[int]) -> list[float]:
        """Of ids in these buckets."""
        known = [
            (right + _WEIGHT * prior) / (right + wrong + _WEIGHT)
            for (right, wrong), prior in zip(self._counts, self._priors, strict=True)
        ]
        return [known[i] for i in buckets]

    def learn(self, proposal: Proposal, written: Sequence[int]) -> None:
        """Compare a proposal with what the model wrote, up to the first id that differs."""
        for drafted, bucket, token_id in zip(proposal.ids, proposal.buckets, written, strict=False):
            is_right = drafted == token_id
            for counts in (self._counts[bucket], self._counts[-1]):
                counts[0] = counts[0] * _DECAY + is_right
                counts[1] = counts[1] * _DECAY + (not is_right)
            if not is_right:
                break


class Acceptance:
    """What is known of all sources. Share one object between the answers of a model.

    An answer then starts with the experience of earlier ones, and a few dozen tokens outweigh it.
    """

    def __init__(self) -> None:
        self._records: dict[str, SourceRecord] = {}
        self._balance = 0.0  # plain steps that drafts have saved lately, less those that they cost

    def record_of(self, source: DraftSource) -> SourceRecord:
        """What is known of a source, and of all of its name."""
        return self._records.setdefault(source.name, SourceRecord(source.priors))

    @property
    def pays(self) -> bool:
        """Whether drafts may go on: what they cost lately has not left what they saved far behind."""
        return self._balance > -_MOST_LOST

    def settle(self, saved: float) -> None:
        """Learn from a step what its drafts saved, in plain steps."""
        self._balance = min(self._balance * _FORGOTTEN + saved, _MOST_WON)
