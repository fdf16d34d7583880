"""Several answers over one engine: none changes another's ids, all get on, and a full cache loses nothing.

On a scripted engine of blocks and one of slots, whose logits follow from what the cache really holds; what only a real
engine can get wrong is a batch of the demo model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pytest

from edge.api import scripted_llm
from edge.runtime.arrays import Logits
from edge.runtime.chunk import Chunk
from edge.runtime.engines.scripted import noise
from edge.runtime.errors import ContextLengthError, DeviceError, GenerationError
from edge.runtime.llm import LLM
from edge.runtime.scheduler import SHARED_CHUNK
from edge.runtime.settings import EngineSettings, GenerationOptions, Sampling
from edge.runtime.stream import Stream, read_all

RNG = np.random.default_rng(11)
PROMPTS: list[list[int]] = [RNG.integers(0, 250, count).tolist() for count in (5, 40, 17, 33, 64, 3, 90, 12)]
SETTINGS: GenerationOptions = {"max_new_tokens": 24, "ignore_stop_ids": True}

Shape = dict[str, Any]  # keywords of ScriptedEngine
SHAPES: dict[str, Shape] = {
    "blocks": {},
    "slots": {"block_size": 256, "max_context": 256, "num_blocks": 16, "max_sequences": 1, "ragged": False},
}
ONE_SLOT: Shape = {**SHAPES["slots"], "num_blocks": 1, "max_step_rows": 1, "logits_rows": "last"} | dict.fromkeys(
    ("can_trim", "can_fork", "can_snapshot"), False
)


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def llm(shape: str) -> Iterator[LLM]:
    with scripted_llm(noise(), **SHAPES[shape]) as found:
        yield found


def with_settings(**more: Unpack[GenerationOptions]) -> GenerationOptions:
    return {**SETTINGS, **more}


def check(llm: LLM) -> None:
    """Nothing runs, and every block is free or kept."""
    scheduler = llm._scheduler
    assert scheduler.num_requests == 0
    scheduler.prefixes.check_integrity()
    llm.engine.pool.check_integrity(scheduler.prefixes.held_blocks())


def alone(llm: LLM, prompt: list[int], **more: Unpack[GenerationOptions]) -> tuple[int, ...]:
    llm.clear_cache()
    return llm.generate(prompt, **with_settings(**more)).answer().token_ids


def ids_of(chunks: list[Chunk]) -> list[int]:
    return [i for chunk in chunks for i in chunk.token_ids]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("shape", [*SHAPES.values(), ONE_SLOT], ids=[*SHAPES, "one slot"])
def test_a_batch_equals_its_sequences(shape: Shape, sampling: GenerationOptions) -> None:
    """Also on an engine of one slot that can only go on: answers take turns."""
    llm = scripted_llm(noise(), **shape)
    expected = [alone(llm, prompt, **sampling) for prompt in PROMPTS]
    llm.clear_cache()
    answers = llm.generate_batch(PROMPTS, **with_settings(**sampling))
    assert [answer.token_ids for answer in answers] == expected
    assert [answer.finish_reason for answer in answers] == ["length"] * len(PROMPTS)
    assert len(set(expected)) == len(PROMPTS)
    check(llm)


def test_a_batch_of_the_demo_model_equals_its_sequences(demo_bundle: Path, engine: str) -> None:
    """With the default roundings: int8 activations, and bfloat16 where the processor has it."""
    llm = LLM(demo_bundle, EngineSettings(engine, reproducible=True))
    questions = ("What is the capital of France?", "Write a haiku about rain.", "Name three colours.", "What is 2+2?")
    prompts = [[{"role": "user", "content": question}] for question in questions]
    expected = []
    for prompt in prompts:
        llm.clear_cache()
        expected.append(llm.generate(prompt, max_new_tokens=40).answer().token_ids)
    llm.clear_cache()
    assert [answer.token_ids for answer in llm.generate_batch(prompts, max_new_tokens=40)] == expected


def test_joining_and_leaving_between_steps(llm: LLM) -> None:
    """A new stream at every second chunk of the first; one of them is closed midway."""
    expected = [alone(llm, prompt) for prompt in PROMPTS]
    llm.clear_cache()
    first, others, taken = llm.generate(PROMPTS[0], **SETTINGS), list[Stream](), list[int]()
    for step, chunk in enumerate(first):
        taken += chunk.token_ids
        if step % 2 == 0 and len(others) < len(PROMPTS) - 1:
            others.append(llm.generate(PROMPTS[1 + len(others)], **SETTINGS))
        if step == 9:
            others[1].close()
    assert tuple(taken) == expected[0]
    found = [stream.answer() for stream in others]
    assert found[1].finish_reason == "cancelled"
    assert [answer.token_ids for i, answer in enumerate(found) if i != 1] == [
        e for i, e in enumerate(expected[1:]) if i != 1
    ]
    check(llm)


def test_readers_in_threads(llm: LLM) -> None:
    expected = [alone(llm, prompt) for prompt in PROMPTS]
    llm.clear_cache()
    found: dict[int, tuple[int, ...]] = {}

    def read(index: int) -> None:
        found[index] = llm.generate(PROMPTS[index], **SETTINGS).answer().token_ids

    threads = [threading.Thread(target=read, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(PROMPTS))] == expected
    check(llm)


def test_a_stream_nobody_holds_any_more_is_let_go(llm: LLM) -> None:
    stream = llm.generate(PROMPTS[0], **with_settings(max_new_tokens=200))  # it would outlast the other
    next(stream)
    del stream
    assert llm._scheduler.num_requests == 1
    llm.generate(PROMPTS[1], **SETTINGS).answer()
    check(llm)


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    """Nor does a running answer: each step of it costs the others one short chunk."""
    llm = scripted_llm(noise())
    long = RNG.integers(0, 250, 2000).tolist()
    running = llm.generate([7, 8, 9], max_new_tokens=200, ignore_stop_ids=True)
    next(running)
    reading, short = llm.generate(long, **SETTINGS), llm.generate([3, 4, 5], max_new_tokens=5, ignore_stop_ids=True)
    before = len(llm._scheduler._decoding[0].ids)
    assert short.answer().stats.new_tokens == 5  # type: ignore[union-attr]
    steps = len(llm._scheduler._decoding[0].ids) - before
    assert steps <= 8
    progress = [chunk.prefill.done for chunk in reading._request.chunks if chunk.prefill is not None]
    assert progress == [SHARED_CHUNK * (i + 1) for i in range(len(progress))]
    assert 0 < len(progress) < len(long) // SHARED_CHUNK
    assert len(ids_of(list(reading))) == 24
    running.close()
    check(llm)


def test_prompts_that_begin_alike_are_computed_once(llm: LLM) -> None:
    shared = RNG.integers(0, 250, 70).tolist()
    prompts = [[*shared, i, i + 1] for i in range(3)]
    answers = llm.generate_batch(prompts, **SETTINGS)
    assert [answer.stats.cached_tokens for answer in answers if answer.stats] == [0, 70, 70]
    assert [answer.token_ids for answer in answers] == [alone(llm, prompt) for prompt in prompts]


def test_several_samples_of_one_prompt(llm: LLM) -> None:
    """The prompt is computed once, and each is what its seed gives alone."""
    prompt = PROMPTS[4]
    answers = llm.sample(prompt, 3, **with_settings(temperature=1.0, seed=7))
    assert [answer.stats.cached_tokens for answer in answers if answer.stats] == [0, 63, 63]
    assert len({answer.token_ids for answer in answers}) == 3
    for i, answer in enumerate(answers):
        assert answer.token_ids == alone(llm, prompt, temperature=1.0, seed=7 + i)
    check(llm)


# Four blocks of 32 tokens, or two slots of 100.
SMALL: dict[str, Shape] = {
    "blocks": {"block_size": 32, "num_blocks": 4},
    "slots": {**SHAPES["slots"], "block_size": 100, "max_context": 100, "num_blocks": 2},
}


def test_a_full_cache_makes_requests_wait(llm: LLM, shape: str) -> None:
    """Four blocks for eight answers of up to three: some wait, all come, nothing is lost."""
    expected = [alone(llm, prompt[:60], max_new_tokens=12) for prompt in PROMPTS]
    tight = scripted_llm(noise(), **SMALL[shape])
    before = tight.engine.pool.num_blocks
    streams = [tight.generate(prompt[:60], **with_settings(max_new_tokens=12)) for prompt in PROMPTS]
    next(streams[0])
    assert tight.stats.waiting
    assert [stream.answer().token_ids for stream in streams[1:]] == expected[1:]
    assert tight.engine.pool.num_blocks == before
    assert tight.cache_stats.evicted_blocks > 0
    streams[0].close()
    check(tight)


def test_a_request_larger_than_the_pool(shape: str) -> None:
    """Refused with figures, at once where the prompt alone is too long; the others go on."""
    tight = scripted_llm(noise(), **{**SMALL[shape], "num_blocks": 2})
    size = tight.engine.info.max_context
    good, bad = [1, 2, 3], [5] * size
    answers = tight.generate_batch([good, bad, good], max_new_tokens=4, ignore_stop_ids=True)
    assert [answer.finish_reason for answer in answers] == ["length", "error", "length"]
    assert isinstance(answers[1].error, ContextLengthError)
    assert f"has {size} tokens and the context holds {size}" in str(answers[1].error)
    check(tight)


def test_a_pinned_prefix_stays_and_may_leave_no_room(shape: str) -> None:
    tight = scripted_llm(noise(), **SMALL[shape])
    pinned = PROMPTS[6][:64]
    assert tight.prefixes.pin(pinned) == 64
    for prompt in PROMPTS:
        tight.generate(prompt[:40], max_new_tokens=8, ignore_stop_ids=True).answer()
    last = tight.generate([*pinned, 1], max_new_tokens=4, ignore_stop_ids=True).answer()
    assert last.stats is not None
    assert last.stats.cached_tokens == 64
    if shape == "blocks":
        with pytest.raises(
            ContextLengthError, match=r"may take 100 tokens, that is 4 blocks.* it has 4 .* 2 are pinned"
        ):
            tight.generate([9] * 90, max_new_tokens=10).answer()
    tight.prefixes.unpin_all()
    tight.generate([9] * 90, max_new_tokens=10, ignore_stop_ids=True).answer()
    check(tight)


class Unplugged:
    """Noise, until it is unplugged: from then on it fails, `times` times, after so many rows."""

    def __init__(self) -> None:
        self.script, self.rows_left, self.times = noise(), -1, 0

    def __call__(self, held: Sequence[int]) -> int | Logits:
        if self.rows_left == 0 and self.times:
            self.times -= 1
            raise DeviceError("the engine failed: unplugged")
        self.rows_left -= self.rows_left > 0
        return self.script(held)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_an_engine_that_fails_once_ends_no_answer_among_several(shape: str, rows: int) -> None:
    """Each is computed by itself then, from where it was."""
    script = Unplugged()
    llm = scripted_llm(script, **SHAPES[shape])
    expected = [alone(llm, prompt) for prompt in PROMPTS[:3]]
    llm.clear_cache()
    streams = [llm.generate(prompt, **SETTINGS) for prompt in PROMPTS[:3]]
    begun = [list(next(stream).token_ids) for stream in streams]
    script.rows_left, script.times = rows, 1
    for i in (1, 0, 2):
        assert tuple(begun[i] + ids_of(list(streams[i]))) == expected[i]
    assert script.times == 0
    check(llm)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_an_engine_that_goes_on_failing_ends_what_it_computes(shape: str, rows: int) -> None:
    """Every reader sees the error, and what was submitted afterwards is answered."""
    script = Unplugged()
    llm = scripted_llm(script, **SHAPES[shape])
    expected = [alone(llm, prompt) for prompt in PROMPTS[:3]]
    llm.clear_cache()
    streams = [llm.generate(prompt, **SETTINGS) for prompt in PROMPTS[:3]]
    begun = [next(stream).token_ids for stream in streams]
    script.rows_left, script.times = rows, 1000
    for stream, prompt in zip(streams, expected, strict=True):
        found = list(begun[streams.index(stream)])
        (answer,) = read_all([stream])
        assert isinstance(answer.error, DeviceError)
        found += answer.token_ids
        assert tuple(found) == prompt[: len(found)], "what was delivered before is right"
        assert list(stream) == []
    assert llm.stats.running == 0
    script.times = 0
    assert [alone(llm, prompt) for prompt in PROMPTS[:3]] == expected
    check(llm)


def test_what_is_wrong_with_one_request_ends_that_one(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [alone(llm, prompt) for prompt in PROMPTS[:3]]
    llm.clear_cache()
    streams = [llm.generate(prompt, **SETTINGS) for prompt in PROMPTS[:3]]

    def refuse(*_: object) -> int:
        raise GenerationError("the constraint cannot be followed further")

    monkeypatch.setattr(streams[1]._request, "_choose", refuse)
    assert streams[0].answer().token_ids == expected[0]
    with pytest.raises(GenerationError, match="cannot be followed"):
        streams[1].answer()
    assert streams[2].answer().token_ids == expected[2]
    check(llm)


def test_statistics(llm: LLM) -> None:
    llm.generate(PROMPTS[1], max_new_tokens=3, ignore_stop_ids=True).answer()
    llm.generate(PROMPTS[1], max_new_tokens=3, ignore_stop_ids=True).answer()
    stats = llm.cache_stats
    assert (stats.lookups, stats.lookup_tokens, stats.hit_tokens) == (2, 80, 39)
    assert stats.hit_rate == 39 / 80
    assert stats.tokens == 42
    llm.clear_cache()
    assert llm.num_cached_tokens == 0


def test_settings_of_each_answer_are_its_own(llm: LLM) -> None:
    """Two streams with other samplings in one batch."""
    greedy, warm = Sampling(), Sampling(temperature=1.0, seed=3)
    assert greedy != warm
    expected = (alone(llm, PROMPTS[0]), alone(llm, PROMPTS[0], temperature=1.0, seed=3))
    assert expected[0] != expected[1]
    llm.clear_cache()
    warmed = with_settings(temperature=1.0, seed=3)
    streams = llm.generate(PROMPTS[0], **SETTINGS), llm.generate(PROMPTS[0], **warmed)
    assert tuple(stream.answer().token_ids for stream in streams) == expected
