"""What all answers of one model share for drafting: settings, what was learned so far, and texts to draft from.

In: settings and a draft store, either of which may be missing. Out: a `Drafter` for each answer; the store is saved
every few answers. Knows nothing about engines or requests.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

from edge.runtime.errors import SettingsError
from edge.runtime.settings import GenerationSettings, Sampling, SpeculationSettings
from edge.runtime.speculation.acceptance import Acceptance
from edge.runtime.speculation.copies import StoreSource, TextSource
from edge.runtime.speculation.cost import StepCost
from edge.runtime.speculation.drafter import Drafter
from edge.runtime.speculation.ngrams import MOST_IDS, Ngrams
from edge.runtime.speculation.saver import Saver
from edge.runtime.speculation.source import DraftSource, SourceMaker
from edge.runtime.speculation.store import DraftStore

_SEED_BITS = 62
REMEMBERED_PROMPT = 32  # its last ids are stored with an answer, which begins alike when the question is asked again


class SharedDrafts:
    """Drafting for one model. Without settings nothing is drafted, but a store still remembers answers."""

    def __init__(
        self,
        settings: SpeculationSettings | None,
        store: DraftStore | None,
        makers: Sequence[SourceMaker] = (),
        least_rows: int = 1,
    ) -> None:
        """least_rows: of the engine that verifies (`EngineInfo`)."""
        self.cost = StepCost(least_rows)
        self._settings, self._store = settings, store
        self._saver = None if store is None or not store.has_file else Saver(store)
        self._acceptance = Acceptance()
        self._ngrams = None if settings is None else Ngrams([] if store is None else store.latest(MOST_IDS - 1))
        self._makers: list[SourceMaker] = [*([] if self._ngrams is None else [self._ngrams]), *makers]

    def with_seed(self, settings: GenerationSettings) -> GenerationSettings:
        """Settings whose random numbers are known beforehand, if drafts may be drawn with them."""
        sampling = settings.sampling
        if self._settings is None or sampling.temperature == 0 or sampling.seed is not None:
            return settings
        return replace(settings, sampling=replace(sampling, seed=secrets.randbits(_SEED_BITS)))

    def drafter(self, prompt_ids: Sequence[int], sampling: Sampling) -> Drafter | None:
        """Return a drafter for one answer, or None without settings."""
        if self._settings is None:
            return None
        least = self._settings.min_match
        sources: list[DraftSource] = [TextSource(least)]
        if self._store is not None:
            sources.append(StoreSource(self._store, least))
        made = [maker.source(prompt_ids, sampling) for maker in self._makers]
        sources += [source for source in made if source is not None]
        return Drafter(prompt_ids, sources, self.cost, self._acceptance, self._settings.max_draft)

    def interrupt(self, *, final: bool) -> None:
        """Ask whatever is drafting to end soon, as `Engine.interrupt` does. May be called from any thread."""
        for maker in list(self._makers):
            maker.interrupt(final=final)

    def close(self) -> None:
        """Free what drafts are made with. A second call changes nothing."""
        while self._makers:
            self._makers.pop().close()

    def add(self, ids: Sequence[int]) -> bool:
        """Draft from a text, too; False if the store has it already. Raises SettingsError without a store."""
        if self._store is None:
            raise SettingsError("documents to draft from are kept in a draft store; load with draft_store=FILE")
        return self._added(self._store, ids)

    def remember(self, ids: Sequence[int], num_prompt_tokens: int) -> None:
        """Let later answers draft from a finished one. ids: those of the prompt and the answer."""
        if self._ngrams is not None and len(ids) > num_prompt_tokens + 1:
            self._ngrams.learn(ids[num_prompt_tokens:])
        if self._store is not None and len(ids) > num_prompt_tokens + 1:
            self._added(self._store, ids[max(num_prompt_tokens - REMEMBERED_PROMPT, 0) :])

    def save(self) -> None:
        """Write the store for the last time, if there is one. Raises OutputError and DraftStoreError."""
        if self._saver is not None:
            self._saver.close()
        if self._store is not None:
            self._store.save()

    def _added(self, store: DraftStore, ids: Sequence[int]) -> bool:
        is_new = store.add(ids)
        if is_new and self._saver is not None:
            self._saver.added()
        return is_new
