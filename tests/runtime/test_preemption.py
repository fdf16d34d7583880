"""A full KV cache: requests are admitted in hope, give way, and still answer as if they had been alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.api import scripted_llm
from edge.runtime.admission import MAX_OVERTAKEN
from edge.runtime.chunk import Answer
from edge.runtime.engines.scripted import Script, noise
from edge.runtime.errors import ContextLengthError
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from edge.runtime.stream import Stream

CONTEXT = 128
PROMPTS = [[(7 * i + j) % 250 for j in range(3 + i % 40)] for i in range(32)]
HARD: dict[str, Any] = {"temperature": 0.8, "seed": 5, "repetition_penalty": 1.2, "logprobs": 2, "stop": ["\x07\x01"]}


def check(llm: LLM) -> None:
    llm.engine.pool.check_integrity(llm._scheduler.held_blocks())
    llm._scheduler.prefixes.check_integrity()


def run_together(llm: LLM, prompts: Sequence[Sequence[int]], **options: Any) -> list[Answer]:
    """Answers of requests that run together, with the integrity check after every step; and none may starve."""
    streams = [llm.generate(prompt, **options) for prompt in prompts]
    idle_steps, before = 0, (-1, -1, -1)
    while llm.stats.running or llm.stats.waiting:
        llm._scheduler.step()
        check(llm)
        oldest = next((i for i, stream in enumerate(streams) if not stream._request.finished), len(streams) - 1)
        request = streams[oldest]._request
        after = (oldest, len(request.ids), 0 if request.sequence is None else request.sequence.num_tokens)
        idle_steps = 0 if after != before else idle_steps + 1
        assert idle_steps <= MAX_OVERTAKEN + len(prompts), "the oldest request makes no step"
        before = after
    return [stream.answer() for stream in streams]


# Blocks of a few tokens, or of a whole sequence each, of which memory is taken token by token.
POOLS: dict[str, dict[str, Any]] = {
    **{f"blocks of {n}": {"block_size": n, "num_blocks": 2 * CONTEXT // n} for n in (1, 4, 16)},
    "slots": {"block_size": CONTEXT, "num_blocks": 12, "max_tokens": 2 * CONTEXT},
}


@pytest.mark.parametrize("options", [{}, HARD, {"max_new_tokens": 30}], ids=["greedy", "sampled", "limited"])
@pytest.mark.parametrize("pool", POOLS)
def test_32_requests_in_a_pool_of_two_contexts(pool: str, options: dict[str, Any]) -> None:
    tight = scripted_llm(noise(), max_context=CONTEXT, **POOLS[pool])
    alone = scripted_llm(noise(), max_context=CONTEXT)
    answers = run_together(tight, PROMPTS, **options)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected = alone.generate(prompt, **options).answer()
        assert (answer.text, answer.token_ids) == (expected.text, expected.token_ids)
        assert (answer.finish_reason, answer.logprobs) == (expected.finish_reason, expected.logprobs)
        assert answer.stats is not None
        assert answer.stats.prompt_tokens == len(prompt)
    if not options:
        assert tight.stats.preemptions > 0
        assert max(answer.stats.preemptions for answer in answers if answer.stats is not None) > 0


def test_real_engines_answer_as_alone(tiny_bundle: Path, engine: str) -> None:
    """What was computed of a preempted answer is computed again as it was written, so that bits are the same."""
    settings = EngineSettings(engine, reproducible=True, max_context=CONTEXT)
    alone = LLM(tiny_bundle, settings)
    spare = {"openvino": alone.engine.pool.block_size, "onnx": 1}[engine]  # of the padding
    kv_cache_bytes = (2 * CONTEXT + spare) * alone.engine.info.kv_bytes_per_token
    tight = LLM(tiny_bundle, replace(settings, kv_cache_bytes=kv_cache_bytes))
    assert tight.stats.tokens == 2 * CONTEXT
    answers = run_together(tight, PROMPTS, ignore_stop_ids=True)
    assert tight.stats.preemptions > 0
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.token_ids == alone.generate(prompt, ignore_stop_ids=True).answer().token_ids


@pytest.mark.parametrize(
    "pool", [{"block_size": 32, "num_blocks": 162}, {"block_size": 2048, "num_blocks": 16, "max_tokens": 5184}]
)
def test_eight_short_chats_without_a_limit_run_at_once(pool: dict[str, Any]) -> None:
    """Two ran and six waited: each was promised its whole context."""
    script: Script = lambda held: 7 if len(held) < 200 else 260  # noqa: E731
    llm = scripted_llm(script, max_context=2048, **pool)
    assert llm.stats.tokens == 5184
    streams = [llm.generate([i] * 60, max_new_tokens=None) for i in range(8)]
    for _ in range(10):
        llm._scheduler.step()
    assert llm.stats.running == 8
    assert [stream.answer().finish_reason for stream in streams] == ["stop"] * 8
    assert llm.stats.preemptions == 0


def test_an_answer_alone_ends_where_the_cache_does() -> None:
    """A pinned prefix takes room for good: the context is then what is left."""
    llm = scripted_llm(lambda held: 7, max_context=64, block_size=4, num_blocks=16)
    llm.prefixes.pin([1] * 32)
    answer = llm.generate([2, 3]).answer()
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 31)  # the last one needs no room
    check(llm)


def test_what_can_never_fit_is_refused_at_once() -> None:
    llm = scripted_llm(lambda held: 7, max_context=64, block_size=4, num_blocks=16)
    llm.prefixes.pin([1] * 32)
    running = llm.generate([2, 3], max_new_tokens=20)
    next(running)
    with pytest.raises(ContextLengthError, match=r"may take 42 tokens, that is 11 blocks .* it has 16 .* 8 are pinned"):
        llm.generate([2, 4], max_new_tokens=40).answer()
    assert len(running.answer().token_ids) == 19
    check(llm)


def test_a_large_request_is_overtaken_a_few_times_and_no_more() -> None:
    """Small ones need not wait behind it, and it need not wait for ever."""
    llm = scripted_llm(lambda held: 7, max_context=64, block_size=4, num_blocks=16)
    small: list[Stream] = [llm.generate([i, i], max_new_tokens=14) for i in range(2)]
    for _ in range(3):
        llm._scheduler.step()
    large = llm.generate([9] * 50, max_new_tokens=2)
    for step in range(400):
        small.append(llm.generate([10 + step % 90, 5], max_new_tokens=14))
        llm._scheduler.step()
        check(llm)
        if large._request.finished:
            break
    assert large._request.finished
    assert 0 < large._request.overtaken <= MAX_OVERTAKEN
    large.close()
    for stream in small:
        assert len(stream.answer().token_ids) == 14


def test_cancelling_and_deadlines_of_a_preempted_request() -> None:
    llm = scripted_llm(noise(), max_context=64, block_size=4, num_blocks=20)
    streams = [llm.generate([i, 2, 3], ignore_stop_ids=True) for i in range(4)]
    while not (waiting := [s for s in streams if s._request.preemptions and s._request.sequence is None]):
        llm._scheduler.step()
    waiting[0].close()
    check(llm)
    assert list(waiting[0]) == []
    for stream in streams:
        if stream is not waiting[0]:
            assert stream.answer().finish_reason == "length"
    check(llm)
    assert llm.stats.running == llm.stats.waiting == 0


def test_a_one_slot_engine_that_cannot_trim_is_served() -> None:
    """It is asked for whole sequences alone: a conversation goes on where it ended, anything else starts afresh."""
    script: Script = lambda held: (sum(held) + len(held)) % 250  # noqa: E731
    limits: dict[str, Any] = {"can_trim": False, "can_fork": False, "can_snapshot": False}
    llm = scripted_llm(
        script,
        max_context=64,
        block_size=64,
        num_blocks=1,
        max_sequences=1,
        max_step_rows=1,
        logits_rows="last",
        **limits,
    )
    free = scripted_llm(script, max_context=64)
    first = llm.generate([1, 2, 3, 4, 5, 6], max_new_tokens=4).answer()
    whole = [1, 2, 3, 4, 5, 6, *first.token_ids]
    follow_up = llm.generate([*whole, 9], max_new_tokens=4).answer()
    assert follow_up.stats is not None
    assert follow_up.stats.cached_tokens == len(whole) - 1  # the last one chosen was never computed
    shorter = llm.generate([1, 2, 3, 4, 7], max_new_tokens=4).answer()
    assert shorter.stats is not None
    assert shorter.stats.cached_tokens == 0
    prompts = [[1, 2, 3], [1, 2, 3], [1, 2, 3, 4], [8, 8], [1, 2]]
    answers = llm.generate_batch([*prompts], max_new_tokens=5)
    assert [a.token_ids for a in answers] == [a.token_ids for a in free.generate_batch(prompts, max_new_tokens=5)]
    assert follow_up.token_ids == free.generate([*whole, 9], max_new_tokens=4).answer().token_ids
    assert shorter.token_ids == free.generate([1, 2, 3, 4, 7], max_new_tokens=4).answer().token_ids
    check(llm)
