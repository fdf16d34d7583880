"""Prefixes under pressure: what is pinned or saved is whole, or it is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

import edge
from edge.runtime.engines.scripted import noise
from edge.runtime.errors import CacheFullError
from edge.runtime.llm import LLM
from edge.runtime.prefixes import ATTEMPTS
from edge.runtime.prompt import Prompt
from edge.runtime.vision.progress import OnPicture

PREFIX = list(range(1, 30))


@pytest.fixture
def llm() -> LLM:
    return edge.scripted_llm(noise(), max_context=128, block_size=4, num_blocks=64)


def drive_out(llm: LLM, times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let others need the room of a prefix, just after it was computed, a few times."""
    compute, calls = llm.prefixes._compute, list[int]()

    def computed(prefix: object, on_picture: OnPicture | None) -> Prompt:
        prompt = compute(prefix, on_picture)
        calls.append(len(prompt.ids))
        if len(calls) <= times:
            llm.clear_cache()
        return prompt

    monkeypatch.setattr(llm.prefixes, "_compute", computed)
    return calls


def check(llm: LLM) -> None:
    llm._scheduler.prefixes.check_integrity()
    llm.engine.pool.check_integrity(llm._scheduler.held_blocks())


def test_a_prefix_that_is_driven_out_is_computed_again(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was left of it was saved, and told as the whole."""
    calls = drive_out(llm, ATTEMPTS - 1, monkeypatch)
    assert llm.prefixes.save(PREFIX, tmp_path / "some.prefix").num_tokens == len(PREFIX)
    assert len(calls) == ATTEMPTS
    check(llm)
    later = edge.scripted_llm(noise(), max_context=128, block_size=4, num_blocks=64)
    assert later.prefixes.load(tmp_path / "some.prefix").num_tokens == len(PREFIX)
    stats = later.generate([*PREFIX, 99], max_new_tokens=1).answer().stats
    assert stats is not None
    assert stats.cached_tokens == len(PREFIX)


def test_a_prefix_without_room_is_an_error(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive_out(llm, 2 * ATTEMPTS, monkeypatch)
    with pytest.raises(CacheFullError, match="no room in the KV cache for a prefix of 29 tokens"):
        llm.prefixes.save(PREFIX, tmp_path / "some.prefix")
    with pytest.raises(CacheFullError):
        llm.prefixes.pin(PREFIX)
    assert not (tmp_path / "some.prefix").exists()
    assert llm.cache_stats.pinned_blocks == 0
    check(llm)


def test_what_is_pinned_stays_and_what_is_let_go_goes(llm: LLM) -> None:
    assert llm.prefixes.pin(PREFIX) == len(PREFIX)
    llm.clear_cache()
    assert llm.num_cached_tokens >= len(PREFIX)
    assert llm.cache_stats.pinned_blocks == 8
    llm.prefixes.unpin_all()
    llm.clear_cache()
    assert llm.num_cached_tokens == 0
    check(llm)
