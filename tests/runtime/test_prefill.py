"""Whose prompt is read next: new ones first, whole chunks, and none is passed over for ever."""

from __future__ import annotations

import numpy as np
import pytest

from edge.runtime.engines.scripted import ScriptedEngine, noise, tokenizer_json
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.prefill import PASSED_OVER, PromptTurns, compute, num_missing
from edge.runtime.prompt import Prompt
from edge.runtime.request import Request
from edge.runtime.settings import GenerationSettings
from edge.runtime.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_text(tokenizer_json())


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(noise())


def prompt_of(engine: ScriptedEngine, length: int, seed: int = 0) -> Request:
    ids = np.random.default_rng(seed).integers(0, 256, length).tolist()
    request = Request(Prompt(ids), GenerationSettings(), TOKENIZER, (), engine.info.max_context)
    request.sequence = CacheSequence(engine.pool)
    return request


def test_new_prompts_come_first_and_in_their_own_order(engine: ScriptedEngine) -> None:
    old, first, second = (prompt_of(engine, 100) for _ in range(3))
    turns = PromptTurns()
    turns.add([old])
    turns.add([first, second])
    assert list(turns) == [first, second, old]
    compute(engine, first, 64)
    turns.end_turn(first)
    assert list(turns) == [second, old, first], "it lacks 36 tokens more"
    compute(engine, first, 64)
    turns.end_turn(first)
    assert list(turns) == [second, old], "it has been read"


def test_a_prompt_gets_all_that_it_lacks_or_a_whole_step(engine: ScriptedEngine) -> None:
    turns, long, short = PromptTurns(), prompt_of(engine, 100), prompt_of(engine, 20)
    turns.add([long])
    assert turns.next(64, 64) is long
    assert turns.next(63, 64) is None, "a small chunk of a long prompt"
    assert turns.next(0, 64) is None
    turns.add([short])
    assert turns.next(63, 64) is short, "all of it"
    assert turns.next(20, 64) is short
    assert turns.next(19, 64) is None


def test_a_prompt_that_is_passed_over_again_and_again_comes_first(engine: ScriptedEngine) -> None:
    turns, old = PromptTurns(), prompt_of(engine, 1000)
    turns.add([old])
    others = 0
    while True:
        turns.add([prompt_of(engine, 10)])
        turns.begin_step()
        request = turns.next(10, 10)
        assert request is not None
        if request is old:
            break
        others += 1
        compute(engine, request, 10)
        turns.end_turn(request)
    assert others == PASSED_OVER + 2, "the limit has one more for each of the two that are being read"
    compute(engine, old, 10)
    turns.end_turn(old)
    assert old.skipped == 0


@pytest.mark.parametrize("limit", [7, 16, 1000])
def test_a_prompt_in_chunks_gives_the_logits_of_one_shot(engine: ScriptedEngine, limit: int) -> None:
    whole, parts = prompt_of(engine, 100), prompt_of(engine, 100)
    expected = compute(engine, whole, 1000)
    found = expected
    while num_missing(parts):
        found = compute(engine, parts, limit)
    assert found.shape == expected.shape == (1, 261)
    assert (found == expected).all()
