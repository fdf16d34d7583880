"""The engine of docs/add-an-engine.md, held to what that page asks of an engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edge
from edge.runtime.bundle import open_bundle
from edge.runtime.engines.engine import Engine
from edge.runtime.engines.registry import ENGINES
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.settings import EngineSettings, GenerationOptions
from tests.docs import example_engine
from tests.docs.example_engine import BLOCK, RECORD, WIDTH, MeanEngine
from tests.docs.markdown import read
from tests.docs.shown import ROOT, blocks

PAGE = ROOT / "docs" / "add-an-engine.md"
PROMPTS = [f"Question {i}: what comes after {'a long introduction and ' * i}this?" for i in range(6)]
# Sampled, so that an id follows from its whole row of logits.
OPTIONS: GenerationOptions = {"max_new_tokens": 64, "ignore_stop_ids": True, "temperature": 2.0, "seed": 5}
Ids = list[tuple[int, ...]]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, RECORD.name, RECORD)


def answers(llm: edge.LLM, prompts: list[str]) -> Ids:
    found = llm.generate_batch(prompts, **OPTIONS)
    assert all(answer.error is None for answer in found), found
    return [answer.token_ids for answer in found]


@pytest.fixture
def alone(tiny_bundle: Path) -> Ids:
    """Each prompt in a model of its own, so that nothing is shared."""
    found: Ids = []
    for prompt in PROMPTS:
        with edge.load(tiny_bundle, engine="mean", self_test="off") as llm:
            found += answers(llm, [prompt])
    return found


def test_the_page_shows_this_engine() -> None:
    (code,) = [block.text for block in blocks(read(PAGE)) if "class MeanEngine" in block.text]
    assert code == read(Path(example_engine.__file__))


def test_it_is_an_engine(tiny_bundle: Path) -> None:
    engine: Engine = MeanEngine(open_bundle(tiny_bundle), EngineSettings("mean"))
    assert engine.info.name == RECORD.name
    assert engine.info.kv_bytes_per_token * engine.pool.block_size == engine.pool.memory.block_bytes


def test_answers_are_the_same_alone_together_and_after_each_other(tiny_bundle: Path, alone: Ids) -> None:
    assert len({token_id for ids in alone for token_id in ids}) > 50, "answers of a few tokens would prove nothing"
    assert len(set(alone)) == len(PROMPTS)
    with edge.load(tiny_bundle, engine="mean", self_test="off") as llm:
        assert answers(llm, PROMPTS) == alone
        assert answers(llm, PROMPTS) == alone
        assert llm.cache_stats.hit_tokens > 0, "the second time starts from what is cached"


def test_answers_are_the_same_when_the_cache_is_full(tiny_bundle: Path, alone: Ids) -> None:
    room = 20 * BLOCK * WIDTH * 4
    with edge.load(tiny_bundle, engine="mean", self_test="off", kv_cache_bytes=room) as llm:
        assert answers(llm, PROMPTS) == alone
        assert llm.stats.preemptions > 0


def test_drafts_change_no_answer(tiny_bundle: Path, alone: Ids) -> None:
    with edge.load(tiny_bundle, engine="mean", self_test="off", speculation=True) as llm:
        assert answers(llm, PROMPTS) == alone


def test_a_saved_prefix_changes_no_answer(tiny_bundle: Path, alone: Ids, tmp_path: Path) -> None:
    beginning = PROMPTS[5][:60]
    with edge.load(tiny_bundle, engine="mean", self_test="off") as llm:
        count = llm.prefixes.save(beginning, tmp_path / "p").num_tokens
    with edge.load(tiny_bundle, engine="mean", self_test="off") as llm:
        llm.prefixes.load(tmp_path / "p")
        answer = llm.generate(PROMPTS[5], **OPTIONS).answer()
        assert answer.token_ids == alone[5]
        assert answer.stats is not None
        assert answer.stats.cached_tokens >= count - 1


def test_a_failed_step_leaves_nothing(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = MeanEngine(open_bundle(tiny_bundle), EngineSettings("mean"))
    sequence = CacheSequence(engine.pool)
    monkeypatch.setattr(engine, "_logits", lambda *_: 1 / 0)
    ids = np.arange(40)
    with pytest.raises(ZeroDivisionError):
        engine.forward(ids, sequence, ids[-1:])
    assert sequence.num_tokens == 0
    sequence.free()
    engine.pool.check_integrity([])


def test_a_closed_engine_gives_its_memory_back(tiny_bundle: Path) -> None:
    engine = MeanEngine(open_bundle(tiny_bundle), EngineSettings("mean"))
    engine.close()
    engine.close()
    with pytest.raises(edge.CacheError, match="closed"):
        engine.pool.allocate(1)
