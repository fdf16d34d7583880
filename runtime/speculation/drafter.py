"""How many tokens to draft for one running answer, and from where.

In: prompt ids, then the ids that each step appended. Out: drafted ids for the next step, or none if they would not pay.
Knows nothing about engines, sampling or files: the caller verifies drafts and reports the result.

Drafts are copied: from the prompt and the answer so far (prompt lookup decoding, Saxena 2023), and from stored texts
(REST, He et al. 2023). Their length is chosen from the cost per row and the recent acceptance of such drafts, much as
SuffixDecoding (Oliaro et al. 2024) limits it by the match length. Drafts that are not submitted are also compared with
what the model wrote, so learning that they fail costs nothing. Other sources, such as a second model, are asked where
copies promise less (`asking`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from edge.runtime.settings import MAX_MATCH, SpeculationSettings
from edge.runtime.speculation.asking import SourceRecord, ask, best_length
from edge.runtime.speculation.automaton import SuffixAutomaton
from edge.runtime.speculation.cost import StepCost
from edge.runtime.speculation.source import DraftSource, Proposal
from edge.runtime.speculation.store import DraftStore

Source = Literal["text", "store"]

# Match lengths 1, 2, 3-4, 5-8, 9-16, 17 and more: the bucket of each, and the initial chance that the next id is right.
# In most texts, short matches are accidental; a long one is a copy.
_BUCKET = (0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 5)
_PRIOR = (0.03, 0.1, 0.4, 0.75, 0.9, 0.96)
_PRIOR_WEIGHT = 3.0  # the prior counts as this many ids
_DECAY = 0.98  # of earlier counts with each new id: about the last 50 matter

_MIN_GAIN = 1.02  # least speed-up that a draft must promise, as the chances are estimates
_MOST_LOST = 2.0  # plain steps that drafts may have cost on balance; then there are none, until ...
_MOST_WON = 8.0  # ... the balance, of which no more than this counts ...
_FORGOTTEN = 0.995  # ... has faded this much a step: a steady loss is a hundredth at most


class Acceptance:
    """How often drafted ids were right, by source and match length.

    A beta posterior for each: prior counts, plus decaying counts of what was seen. Share one object between the answers
    of a session: an answer then starts with the experience of earlier ones, and a few dozen tokens outweigh it.
    """

    def __init__(self) -> None:
        self._counts: dict[Source, list[list[float]]] = {s: [[0.0, 0.0] for _ in _PRIOR] for s in ("text", "store")}
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

    def probability(self, source: Source, match_length: int) -> float:
        """Return the chance that the id after a match of this length (1 or more) is right."""
        return self.probabilities(source, match_length, 1)[0]

    def probabilities(self, source: Source, match_length: int, count: int) -> list[float]:
        """Return it for `count` ids in a row, each given that those before it were right: the match grows with them."""
        chances = [
            (right + _PRIOR_WEIGHT * prior) / (right + wrong + _PRIOR_WEIGHT)
            for (right, wrong), prior in zip(self._counts[source], _PRIOR, strict=True)
        ]
        top = len(_BUCKET) - 1
        return [chances[_BUCKET[min(match_length + i, top)]] for i in range(count)]

    def learn(self, source: Source, match_length: int, right: int, wrong: bool) -> None:
        """Learn that the first `right` ids after a match of this length were right, and whether the next was wrong."""
        counts, top = self._counts[source], len(_BUCKET) - 1
        for i in range(right + wrong):
            count = counts[_BUCKET[min(match_length + i, top)]]
            count[0] = count[0] * _DECAY + (i < right)
            count[1] = count[1] * _DECAY + (i == right)


class _Candidate(NamedTuple):
    """The draft of one source."""

    source: Source
    match_length: int
    ids: list[int]


class Drafter:
    """Drafts for one running answer: `draft`, verify, `observe`, and again.

    `prompt_ids` are indexed at the first `draft`, about 3 µs per id, so the first token does not wait for it. `cost`
    and `acceptance` are learned; keep them for the next answer.
    """

    def __init__(
        self,
        prompt_ids: Iterable[int],
        settings: SpeculationSettings,
        cost: StepCost,
        store: DraftStore | None = None,
        acceptance: Acceptance | None = None,
        sources: Sequence[DraftSource] = (),
    ) -> None:
        self._pending = list(prompt_ids)  # not indexed yet, nor told to the sources
        self._text = SuffixAutomaton()
        self._settings = settings
        self._cost = cost
        self._store = store
        self._acceptance = Acceptance() if acceptance is None else acceptance
        self._sources = [(source, self._acceptance.record_of(source)) for source in sources]
        self._candidates: list[_Candidate] = []  # of the coming step, submitted or not
        self._proposals: list[tuple[SourceRecord, Proposal]] = []  # likewise, of sources
        self._forced: list[int] = []  # ids before them
        self.steps = 0
        self.drafted = 0  # ids that were verified
        self.accepted = 0  # ids of them that were right

    def draft(self, limit: int, forced: Sequence[int] = ()) -> list[int]:
        """Return ids to verify in the next step; with none, decode plainly.

        limit: how many tokens still fit. A step appends one more than it drafts, so at most limit - 1 ids are drafted.
        forced: ids that must come next (by a grammar); they come first, as many as fit.
        """
        self._index()
        self._candidates, self._proposals, self._forced = [], [], []
        room = min(limit - 1, self._settings.max_draft)
        if room < 1:
            return []
        self._forced = list(forced[:room])
        if len(self._forced) == room:
            return self._forced.copy()
        self._candidates = self._find(room - len(self._forced))
        best_gain, best = _MIN_GAIN if self._acceptance.pays else math.inf, self._forced.copy()
        for candidate in self._candidates:
            gain, count = self._gain(candidate)
            if gain > best_gain:
                best_gain, best = gain, self._forced + candidate.ids[:count]
        plain = len(self._forced) + 1
        for source, record in self._sources:
            found = ask(source, record, room - len(self._forced), self._forced, self._cost, best_gain)
            if found is None:
                continue
            self._proposals.append((record, found))
            gain, count = best_length(record.chances(found.buckets), plain, self._cost)
            if gain > best_gain:
                best_gain, best = gain, self._forced + found.ids[:count]
        return best

    def observe(self, token_ids: list[int], drafted: int) -> None:
        """Learn from the ids that the last step appended, right drafts and the model's own. `drafted` were verified."""
        assert len(token_ids) <= drafted + 1, f"{len(token_ids)} tokens followed {drafted} drafted ones"
        self._pending += token_ids
        self.steps += 1
        self.drafted += drafted
        self.accepted += max(len(token_ids) - 1, 0)
        self._acceptance.settle(self._saved(len(token_ids), drafted))
        written = token_ids[len(self._forced) :]
        for source, match_length, ids in self._candidates:
            right = next((i for i, (a, b) in enumerate(zip(ids, written, strict=False)) if a != b), None)
            known = min(len(ids), len(written))
            self._acceptance.learn(source, match_length, known if right is None else right, right is not None)
        for record, proposal in self._proposals:
            record.learn(proposal, written)
        self._candidates, self._proposals, self._forced = [], [], []

    def close(self) -> None:
        """Free what drafts of this answer held. A second call changes nothing."""
        while self._sources:
            self._sources.pop()[0].close()

    def _saved(self, tokens: int, drafted: int) -> float:
        """Return how many plain steps fewer these tokens took than those that were forced alone."""
        forced = min(len(self._forced), drafted)
        made = sum(proposal.cost_ms for _, proposal in self._proposals)
        extra_ms = self._cost.ms(1 + drafted) - self._cost.ms(1 + forced) + made
        return max(tokens - 1 - forced, 0) - extra_ms / self._cost.ms(1)

    def _index(self) -> None:
        self._text.extend(self._pending)
        for source, _ in self._sources:
            source.extend(self._pending)
        self._pending = []

    def _find(self, count: int) -> list[_Candidate]:
        """Return what each source has to follow the text and the forced ids after it."""
        tail = self._text.tail(MAX_MATCH)
        if self._forced:
            tail = (tail + self._forced)[-MAX_MATCH:]
            found: list[tuple[Source, tuple[int, list[int]]]] = [("text", self._text.find(tail, count))]
        else:
            found = [("text", self._text.draft(count))]
        if self._store is not None and found[0][1][0] < MAX_MATCH:  # the store could not find a longer one
            found.append(("store", self._store.draft(tail, count)))
        return [
            _Candidate(source, length, ids)
            for source, (length, ids) in found
            if ids and length >= self._settings.min_match
        ]

    def _gain(self, candidate: _Candidate) -> tuple[float, int]:
        """Return the best speed-up over drafting only forced ids, and how many of the candidate's ids give it."""
        chances = self._acceptance.probabilities(candidate.source, candidate.match_length, len(candidate.ids))
        return best_length(chances, len(self._forced) + 1, self._cost)
