"""The bundle of a second model that drafts for a first one: whether it can, and its share of the memory.

In: its folder; the first model's bundle, tokenizer and settings. Out: an open engine, and the settings that are left
for the first one. Knows nothing about drafting.

The limit of the KV cache is that of both caches together. They hold the same tokens, so each gets what a token takes
in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from edge.runtime.bundle import TOKENIZER, Bundle, open_bundle
from edge.runtime.engines.engine import Engine
from edge.runtime.engines.limits import context_limit
from edge.runtime.errors import SettingsError, shown
from edge.runtime.self_test import SelfTest, open_tested
from edge.runtime.settings import EngineSettings
from edge.runtime.tokenizer import Tokenizer

PARAM = "draft"
_ADVICE = "choose a model of the same family, or draft without one"
_WIDEST = 4  # bytes of a value in a cache


class Engines(NamedTuple):
    """What a model computes with."""

    engine: Engine
    draft: Engine | None = None  # of a second model
    self_test: SelfTest | None = None  # of the first one; None: not asked for


class DraftBundle:
    """A second model, before it is loaded. Raises BundleError, and SettingsError for another tokenizer's."""

    def __init__(self, path: str | Path, first: Bundle, tokenizer: Tokenizer, settings: EngineSettings) -> None:
        self._bundle = open_bundle(path)
        _check_same(self._bundle, first, tokenizer)
        spec, own = first.manifest.spec, self._bundle.manifest.spec
        share = own.kv_values_per_token / (own.kv_values_per_token + spec.kv_values_per_token)
        limit = min(context_limit(settings, spec), own.max_position_embeddings)
        most = limit * own.kv_values_per_token * _WIDEST  # all that can be used
        if settings.kv_cache_share is None:
            mine = min(int(settings.kv_cache_bytes * share), most)
            self.settings_of_first = replace(settings, kv_cache_bytes=settings.kv_cache_bytes - mine)
            settings = replace(settings, kv_cache_bytes=mine)
        else:
            self.settings_of_first = replace(settings, kv_cache_share=settings.kv_cache_share * (1 - share))
            settings = replace(settings, kv_cache_share=settings.kv_cache_share * share)
        longest = None if settings.max_context is None else limit
        # Bits of drafts decide nothing, so the fastest kernels do.
        self._settings = replace(settings, max_context=longest, reproducible=False)

    def open(self) -> Engine:
        """Load it. Raises as a load does, and SettingsError for an engine that cannot take back what it has read."""
        engine, _ = open_tested(self._bundle, self._settings)
        if not engine.info.can_trim:
            engine.close()
            raise SettingsError(f"the {engine.info.name} engine cannot draft; load without a draft model", param=PARAM)
        return engine


def open_with_draft(bundle: Bundle, settings: EngineSettings, second: DraftBundle | None) -> Engines:
    """Open the engine of a bundle, after that of its draft model if there is one."""
    if second is None:
        engine, found = open_tested(bundle, settings)
        return Engines(engine, self_test=found)
    draft = second.open()
    try:
        engine, found = open_tested(bundle, second.settings_of_first, beside=draft.pool.bytes)
    except BaseException:
        draft.close()
        raise
    return Engines(engine, draft, found)


def _check_same(bundle: Bundle, first: Bundle, tokenizer: Tokenizer) -> None:
    """Raise SettingsError unless ids mean the same tokens in both. Files that differ may: merges make no difference."""
    if bundle.manifest.files[TOKENIZER].sha256 == first.manifest.files[TOKENIZER].sha256:
        return
    other = Tokenizer.from_text(bundle.required(TOKENIZER), bundle.manifest.spec.vocab_size)
    for token_id, (mine, theirs) in enumerate(zip(_tokens(tokenizer), _tokens(other), strict=False)):
        if mine != theirs:
            raise SettingsError(
                f"draft {shown(str(bundle.path))} has another tokenizer: id {token_id} is {shown(theirs[0])} there and "
                f"{shown(mine[0])} in {first.path}; {_ADVICE}",
                param=PARAM,
            )
    if tokenizer.num_tokens != other.num_tokens:
        raise SettingsError(
            f"draft {shown(str(bundle.path))} has another tokenizer: it has {other.num_tokens} tokens, "
            f"{first.path} has {tokenizer.num_tokens}; {_ADVICE}",
            param=PARAM,
        )


def _tokens(tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    for token_id in range(tokenizer.num_tokens):
        yield tokenizer.token_text(token_id), tokenizer.is_special(token_id)
