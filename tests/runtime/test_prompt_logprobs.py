"""Log-probabilities of a prompt: those of a teacher-forced decode, however the prompt was read and who else ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.api import scripted_llm
from edge.profiles.likelihood import Query, score
from edge.runtime.chunk import Answer, PromptLogprobs
from edge.runtime.differences import FLOAT32_BOUND
from edge.runtime.engines.engine import Step
from edge.runtime.engines.scripted import noise
from edge.runtime.errors import ContextLengthError, DeviceError, SettingsError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.logprobs import TokenLogprob
from edge.runtime.prefill import SCORED_ROWS
from edge.runtime.settings import GenerationOptions, SpeculationSettings
from edge.runtime.stream import Stream, read_all
from tests.conftest import ENGINES, EXACT

RNG = np.random.default_rng(5)
PROMPTS: list[list[int]] = [RNG.integers(0, 250, count).tolist() for count in (5, 40, 1, 17, 2, 90, 3)]
LONG = RNG.integers(0, 250, 2 * SCORED_ROWS + 1).tolist()  # the last piece would be a single token
ALL: GenerationOptions = {"max_new_tokens": 0, "prompt_logprobs": 3}
SCRIPT = noise(3)


def expected(prompt: Sequence[int], top: int = 3) -> list[TokenLogprob]:
    """Those of all tokens but the first, by torch's log-softmax of the script's own rows."""
    found = []
    for i in range(1, len(prompt)):
        row = np.zeros(261, np.float32)  # the vocabulary has special tokens, too
        row[:256] = SCRIPT(prompt[:i])
        logprobs = torch.log_softmax(torch.tensor(row).double(), -1)
        best = torch.argsort(-logprobs, stable=True)[:top]
        top_ones = tuple((int(j), logprobs[j].item()) for j in best)
        found.append(TokenLogprob(prompt[i], logprobs[prompt[i]].item(), top_ones))
    return found


def check(found: PromptLogprobs, prompt: Sequence[int], top: int = 3) -> None:
    assert len(found) == len(prompt)
    assert found[0] is None
    for entry, wanted in zip(found[1:], expected(prompt, top), strict=True):
        assert entry is not None
        assert entry.token_id == wanted.token_id
        assert entry.logprob == pytest.approx(wanted.logprob, abs=1e-12)
        assert [i for i, _ in entry.top] == [i for i, _ in wanted.top]
        assert [value for _, value in entry.top] == pytest.approx([value for _, value in wanted.top], abs=1e-12)


def logprobs_of(answer: Answer) -> list[float]:
    return [entry.logprob for entry in answer.prompt_logprobs if entry is not None]


def test_an_answer_of_no_tokens() -> None:
    llm = scripted_llm(SCRIPT)
    for prompt in (*PROMPTS, LONG):
        chunks = list(llm.generate(prompt, **ALL))
        assert [chunk.token_ids for chunk in chunks] == [()] * len(chunks)
        assert [bool(chunk.prompt_logprobs) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        answer = llm.generate(prompt, **ALL).answer()
        assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (), "length")
        check(answer.prompt_logprobs, prompt)
        assert answer.stats is not None
        assert (answer.stats.prompt_tokens, answer.stats.cached_tokens, answer.stats.new_tokens) == (len(prompt), 0, 0)
        assert answer.stats.ttft_ms > 0
    assert llm.stats.running == llm.stats.waiting == 0


@pytest.mark.parametrize("top", [0, 1, 20])
def test_the_answer_is_the_same_with_and_without_them(top: int) -> None:
    llm = scripted_llm(SCRIPT)
    for sampling in ({}, {"temperature": 1.0, "seed": 4, "logit_bias": {7: 5}, "repetition_penalty": 1.3}):
        options: dict[str, Any] = {"max_new_tokens": 9, "logprobs": 2, **sampling}
        plain = llm.generate(PROMPTS[1], **options).answer()
        found = llm.generate(PROMPTS[1], prompt_logprobs=top, **options).answer()
        assert (found.token_ids, found.logprobs) == (plain.token_ids, plain.logprobs)
        assert plain.prompt_logprobs == ()
        check(found.prompt_logprobs, PROMPTS[1], top)  # the model's own: sampling settings change nothing


def test_what_a_cache_holds_is_computed_again() -> None:
    llm = scripted_llm(SCRIPT)
    prompt = LONG[:150]
    llm.prefixes.pin(prompt[:64])
    running = llm.generate(prompt, ignore_stop_ids=True)
    next(running), next(running)
    found = llm.generate([*prompt, 9], **ALL).answer()
    check(found.prompt_logprobs, [*prompt, 9])
    assert found.stats is not None
    assert found.stats.cached_tokens == 0
    later = llm.generate([*prompt, 9, 8], max_new_tokens=1).answer()
    assert later.stats is not None
    assert later.stats.cached_tokens >= 150, "what was computed for them serves others"
    running.close()
    llm.clear_cache()
    llm.engine.pool.check_integrity(llm._scheduler.held_blocks())


def test_one_that_wants_them_waits_for_no_other() -> None:
    """Another one reads the same prompt; what it computes would be of no use here."""
    llm = scripted_llm(SCRIPT)
    first, second = llm.generate(LONG, max_new_tokens=1), llm.generate(LONG, **ALL)
    llm._scheduler.step()
    assert llm.stats.running == 2
    check(second.answer().prompt_logprobs, LONG)
    assert len(first.answer().token_ids) == 1


def test_batched_and_mixed_equals_single() -> None:
    llm = scripted_llm(SCRIPT)
    single = [llm.generate(prompt, max_new_tokens=4, prompt_logprobs=3).answer() for prompt in (*PROMPTS, LONG)]
    llm.clear_cache()
    others = [llm.generate([1, 2, i], max_new_tokens=50, ignore_stop_ids=True) for i in range(3)]
    streams = [llm.generate(prompt, max_new_tokens=4, prompt_logprobs=3) for prompt in (*PROMPTS, LONG)]
    found = read_all(streams)
    assert [answer.prompt_logprobs for answer in found] == [answer.prompt_logprobs for answer in single]
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in single]
    assert all(len(stream.answer().token_ids) == 50 for stream in others)


CONTEXT = 128
POOLS: dict[str, dict[str, Any]] = {
    **{f"blocks of {n}": {"block_size": n, "num_blocks": 2 * CONTEXT // n} for n in (1, 16)},
    "slots": {"block_size": CONTEXT, "num_blocks": 12, "max_tokens": 2 * CONTEXT},
}


@pytest.mark.parametrize("pool", POOLS)
def test_preempted_ones_neither_lose_nor_double_theirs(pool: str) -> None:
    llm = scripted_llm(SCRIPT, max_context=CONTEXT, prefill_chunk=16, **POOLS[pool])
    alone = scripted_llm(SCRIPT, max_context=CONTEXT)
    prompts = [[(7 * i + j) % 250 for j in range(3 + 5 * i % 70)] for i in range(24)]
    streams = [llm.generate(prompt, prompt_logprobs=3) for prompt in prompts]
    assert llm.stats.waiting == len(prompts)
    for prompt, stream in zip(prompts, streams, strict=True):
        answer = stream.answer()
        check(answer.prompt_logprobs, prompt)
        assert answer.token_ids == alone.generate(prompt).answer().token_ids
    assert llm.stats.preemptions > 0
    llm.engine.pool.check_integrity(llm._scheduler.held_blocks())


def test_preempted_while_the_prompt_is_read() -> None:
    """What is known stays, and only the rest is asked for again, also where the cache still holds the beginning."""
    llm = scripted_llm(SCRIPT, prefill_chunk=20)
    for keep in (True, False):
        stream = llm.generate(PROMPTS[5], **ALL)
        request = stream._request
        while len(request.prompt_logprobs) < 41:
            llm._scheduler.step()
        llm._scheduler._stop(request)
        llm._scheduler._admission.preempt(request)
        if not keep:
            llm._scheduler.prefixes.clear()
        llm._scheduler.step()
        assert request.sequence is not None
        assert request.sequence.num_tokens == (60 if keep else 20)
        answer = stream.answer()
        check(answer.prompt_logprobs, PROMPTS[5])
        assert answer.stats is not None
        assert (answer.stats.preemptions, answer.stats.cached_tokens) == (1, 0)
        llm.clear_cache()


@settings(max_examples=60)
@given(
    count=st.integers(1, 80),
    chunk=st.integers(1, 30),
    interruptions=st.lists(st.integers(1, 6), max_size=3),
    tokens=st.integers(0, 3),
)
def test_any_chunks_and_any_failures(count: int, chunk: int, interruptions: list[int], tokens: int) -> None:
    """Also after steps that failed, whose results no one trusts."""
    llm = scripted_llm(SCRIPT, prefill_chunk=chunk)
    prompt = LONG[:count]
    stream = llm.generate(prompt, max_new_tokens=tokens, prompt_logprobs=3)
    for steps in interruptions:
        for _ in range(steps):
            llm._scheduler.step()
        if not stream._request.finished:
            llm._scheduler._start_over([stream._request])
    answer = stream.answer()
    check(answer.prompt_logprobs, prompt)
    assert len(answer.token_ids) == tokens


def test_ends_before_the_prompt_was_read() -> None:
    llm = scripted_llm(SCRIPT, prefill_chunk=16)
    late: Stream = llm.generate(LONG, deadline_s=1e-9, prompt_logprobs=1)
    answer = late.answer()
    assert (answer.finish_reason, answer.prompt_logprobs) == ("deadline", ())
    left = llm.generate(LONG, prompt_logprobs=1)
    next(left)
    left.close()
    assert left.answer().prompt_logprobs == ()
    assert llm.stats.running == 0


def test_what_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"max_new_tokens is 0, expected a whole number, 1 or more") as zero:
        scripted_llm(SCRIPT).generate("a", max_new_tokens=0)
    assert zero.value.param == "max_new_tokens"
    with pytest.raises(SettingsError, match="the scripted engine gives the logits of a prompt's last token") as last:
        scripted_llm(SCRIPT, logits_rows="last").generate("a", prompt_logprobs=0)
    assert last.value.param == "prompt_logprobs"
    small = scripted_llm(SCRIPT, max_context=16)
    check(small.generate(LONG[:16], **ALL).answer().prompt_logprobs, LONG[:16])
    with pytest.raises(ContextLengthError, match="has 17 tokens and the context holds 16"):
        small.generate(LONG[:17], **ALL)
    with pytest.raises(ContextLengthError):
        small.generate(LONG[:16], prompt_logprobs=1)
    broken = scripted_llm(lambda held: np.full(256, np.nan if len(held) == 3 else 0, np.float32))
    with pytest.raises(DeviceError):
        broken.generate("abcdef", **ALL).answer()
    assert len(broken.generate("abc", **ALL).answer().prompt_logprobs) == 3
    broken.engine.pool.check_integrity(broken._scheduler.held_blocks())


def teacher_forced(llm: LLM, ids: Sequence[int]) -> list[float]:
    """Log-probabilities of ids[1:], from one decode after another."""
    sequence, found = CacheSequence(llm.engine.pool), []
    for token_id, following in pairwise(ids):
        (rows,) = llm.engine.decode([Step(sequence, np.array([token_id], np.int64))])
        row = torch.tensor(rows[0, : llm.tokenizer.num_tokens]).double()
        found.append(torch.log_softmax(row, -1)[following].item())
    sequence.free()
    return found


def bound(llm: LLM, ids: Sequence[int]) -> float:
    """The most by which two computations in float32 may differ: a logit's bound, at the token and in the sum."""
    sequence = CacheSequence(llm.engine.pool)
    largest = np.abs(llm.engine.forward(np.array(ids), sequence, np.arange(len(ids)))).max()
    sequence.free()
    return 2 * FLOAT32_BOUND * float(largest)


@pytest.mark.parametrize("reproducible", [False, True])
def test_real_engines(tiny_bundle: Path, engine: str, reproducible: bool) -> None:
    """A teacher-forced decode gives them, too; the scores of `edge.profiles` are their sums, bit for bit."""
    llm = LLM(tiny_bundle, replace(EXACT[engine], reproducible=reproducible, max_context=256))
    ids = [i % llm.tokenizer.num_tokens for i in LONG[:200]]
    found = logprobs_of(llm.generate(ids, **ALL).answer())
    assert found == pytest.approx(teacher_forced(llm, ids), abs=bound(llm, ids))
    again = logprobs_of(llm.generate(ids, max_new_tokens=1, prompt_logprobs=0).answer())
    assert again == found
    for begin in (1, 50, 198):
        (likelihood,) = score(
            llm.engine, llm.tokenizer.num_tokens, [Query(tuple(ids[:begin]), tuple(ids[begin:]))], batch=1
        )
        wanted = pytest.approx(likelihood.logprob, abs=0 if engine == "openvino" or reproducible else bound(llm, ids))
        assert sum(found[begin - 1 :]) == wanted


def test_engines_agree_and_drafts_change_nothing(tiny_bundle: Path) -> None:
    text = "The cat sat on the mat, and the dog sat on the cat. "
    found = {}
    for engine in ENGINES:
        llm = LLM(tiny_bundle, replace(EXACT[engine], max_context=256))
        ids = llm.tokenizer.encode(text)
        found[engine] = logprobs_of(llm.generate(ids, **ALL).answer())
        limit = bound(llm, ids)
        llm.close()
    first, second = (found[engine] for engine in ENGINES)
    assert first == pytest.approx(second, abs=limit)
    drafting = LLM(tiny_bundle, replace(EXACT[ENGINES[0]], max_context=256), SpeculationSettings())
    answer = drafting.generate(ids, max_new_tokens=99, prompt_logprobs=0).answer()
    assert logprobs_of(answer) == pytest.approx(first, abs=limit)
    assert answer.stats is not None
    assert answer.stats.drafted_tokens > 0
    plain = drafting.generate(ids, max_new_tokens=99).answer()
    assert answer.token_ids == plain.token_ids
