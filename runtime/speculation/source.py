"""Where drafts come from: what every source of them offers to the policy.

In: the ids of one answer as they are accepted. Out: ids that may come next, with what their chances are learned by and
what they cost. Knows nothing about engines, sampling or the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from edge.runtime.settings import Sampling


class Proposal(NamedTuple):
    """Ids that may come next, at least one.

    buckets: one for each id, an index into the source's `priors`. How often ids of a bucket are right, given that those
    before them were, is learned, so a bucket holds what the source knows beforehand: a match's length, a probability.
    cost_ms: what making them took; 0 for copies.
    """

    ids: list[int]
    buckets: list[int]
    cost_ms: float = 0.0


class DraftSource(Protocol):
    """One kind of drafts for one running answer. One thread at a time."""

    @property
    def name(self) -> str:
        """Experience is shared by sources of one name: "text", "store", "ngrams", "model", ..."""

    @property
    def priors(self) -> Sequence[float]:
        """The initial chance of each bucket that an id is right; always the same for a name."""

    def extend(self, ids: Sequence[int]) -> None:
        """Take what is certain: the prompt first, then what each step appended. Cheap: work waits for `propose`."""

    def costs_ms(self, most: int) -> Sequence[float]:
        """Return what proposing 1, 2, ... `most` ids is expected to take; nothing for copies, which are always asked.

        Asked once a step, before `propose`, which may then never come.
        """

    def propose(self, count: int, forced: Sequence[int] = ()) -> Proposal | None:
        """Return up to `count` ids (1 or more) to follow the text and `forced` after it; None if nothing comes to mind.

        forced: ids that must come next, as a grammar says; they may turn out not to, if they do not all fit.
        """

    def close(self) -> None:
        """Free what the answer's drafts held. Nothing follows."""


class SourceMaker(Protocol):
    """What all answers of one model share of a kind of drafts, such as a second model or a table.

    `interrupt` may be called from any thread, the rest from one thread at a time.
    """

    def source(self, prompt_ids: Sequence[int], sampling: Sampling) -> DraftSource | None:
        """Return a source for one answer, whose prompt it is given by `extend` as well; None if it has none for it."""

    def interrupt(self, *, final: bool) -> None:
        """Ask a running `propose` to end soon, as `Engine.interrupt` does; copies take no time, and go on."""

    def close(self) -> None:
        """Free everything. Nothing follows."""
