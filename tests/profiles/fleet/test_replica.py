"""A simulated replica makes the steps of the real scheduler, and no time is made up between them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from edge.api import scripted_llm
from edge.profiles.fleet.replica import Replica, StepMade
from edge.profiles.fleet.workload import Ask
from edge.runtime.arrays import Ids, Logits
from edge.runtime.engines.engine import TEXT, Inputs, Step
from edge.runtime.engines.scripted import ScriptedEngine, noise
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.stream import Stream
from tests.profiles.fleet.costs import PLAIN

simpy = pytest.importorskip("simpy")


@dataclass(frozen=True)
class Coming:
    """A request that is there before a step."""

    step: int
    conversation: int
    own_tokens: int  # after the system prompt and earlier turns
    answer_tokens: int


class Seen:
    """What a real scheduler makes an engine compute, step by step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, llm: LLM) -> None:
        self.steps: list[StepMade] = []
        self._answers, self._read = 0, list[int]()
        engine = llm._scheduler._engine
        assert isinstance(engine, ScriptedEngine)
        forward, decode = engine.forward, engine.decode

        def seen_forward(ids: Ids, sequence: CacheSequence, rows: Ids, inputs: Inputs = TEXT) -> Logits:
            logits = forward(ids, sequence, rows, inputs)
            self._read.append(ids.size)
            return logits

        def seen_decode(steps: list[Step]) -> list[Logits]:
            logits = decode(steps)
            self._answers += len(steps)
            return logits

        monkeypatch.setattr(engine, "forward", seen_forward)
        monkeypatch.setattr(engine, "decode", seen_decode)

    def end_step(self) -> None:
        self.steps.append(StepMade(self._answers, tuple(self._read)))
        self._answers, self._read = 0, []


def real_steps(
    monkeypatch: pytest.MonkeyPatch, coming: Sequence[Coming], system: int, blocks: int
) -> tuple[list[StepMade], list[int]]:
    """The steps, and how many tokens of each request were cached."""
    rng = np.random.default_rng(3)
    start = rng.integers(0, 250, system).tolist()
    talks: dict[int, list[int]] = {}
    streams: list[tuple[Stream, int]] = []
    with scripted_llm(
        noise(), block_size=PLAIN.block, num_blocks=blocks, max_context=4096, reproducible=False, max_sequences=256
    ) as llm:
        seen = Seen(monkeypatch, llm)
        left = sorted(coming, key=lambda one: one.step)
        number = 0
        while left or llm._scheduler.num_requests:
            while left and left[0].step <= number:
                one = left.pop(0)
                before = talks.get(one.conversation, start)
                for stream, conversation in streams:  # an earlier turn has ended: its answer is part of this prompt
                    if conversation == one.conversation:
                        before = stream._request.ids
                own = rng.integers(0, 250, one.own_tokens).tolist()
                own[0] = one.conversation  # so that no two begin alike by chance
                prompt = [*before, *own]
                options = {"max_new_tokens": one.answer_tokens, "ignore_stop_ids": True}
                streams.append((llm.generate(prompt, **options), one.conversation))  # type: ignore[arg-type]
            llm._scheduler.step()
            seen.end_step()
            number += 1
        assert all(stream._request.finished for stream, _ in streams)
        return seen.steps, [stream._request.cached_tokens for stream, _ in streams]


def simulated_steps(coming: Sequence[Coming], system: int, blocks: int) -> tuple[list[StepMade], list[int]]:
    made: list[StepMade] = []
    replica = Replica(simpy.Environment(), replace(PLAIN, blocks=blocks), lambda _: None, seen=made.append)
    left, asks, lengths = sorted(coming, key=lambda one: one.step), list[Ask](), dict[int, int]()
    number = 0
    while left or replica.num_requests:
        while left and left[0].step <= number:
            one = left.pop(0)
            prompt = lengths.get(one.conversation, system) + one.own_tokens
            lengths[one.conversation] = prompt + one.answer_tokens
            asks.append(Ask(one.conversation, one.conversation, system, prompt, one.answer_tokens, 0.0))
            assert replica.submit(asks[-1])
        replica.step_begins()
        replica.step_ends()
        replica.kept.check_integrity([*replica.waiting, *replica.reading, *replica.answering])
        number += 1
    assert all(ask.outcome == "answered" and ask.produced == ask.answer_tokens for ask in asks)
    return made, [ask.cached_tokens for ask in asks]


def crowd(seed: int, requests: int, longest: int) -> list[Coming]:
    rng = random.Random(seed)
    return [
        Coming(rng.randint(0, 60), number, rng.randint(1, longest), rng.randint(1, 20)) for number in range(requests)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_steps_are_those_of_the_real_scheduler(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    coming = crowd(seed, 24, 400)
    real, _ = real_steps(monkeypatch, coming, 0, PLAIN.blocks)
    made, _ = simulated_steps(coming, 0, PLAIN.blocks)
    assert made == real
    assert max(step.answers for step in made) > 4  # or nothing was shared
    assert max(len(step.read) for step in made) > 1  # nor several prompts read in one step


@pytest.mark.parametrize("system", [20, 100, 300])
def test_a_system_prompt_is_read_once_and_its_tokens_are_cached_as_in_reality(
    monkeypatch: pytest.MonkeyPatch, system: int
) -> None:
    coming = crowd(7, 16, 90)
    real, cached = real_steps(monkeypatch, coming, system, PLAIN.blocks)
    made, foreseen = simulated_steps(coming, system, PLAIN.blocks)
    assert made == real
    assert foreseen == cached
    assert sum(cached) > 0


def test_later_turns_start_from_all_that_earlier_ones_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    coming = [Coming(100 * turn, talk, 30 + talk, 9) for turn in range(4) for talk in range(3)]
    real, cached = real_steps(monkeypatch, coming, 50, PLAIN.blocks)
    made, foreseen = simulated_steps(coming, 50, PLAIN.blocks)
    assert made == real
    assert foreseen == cached
    assert cached[-1] > 100


@pytest.mark.parametrize("seed", range(4))
def test_where_the_cache_is_too_small_the_same_requests_wait_and_give_way(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    coming = crowd(seed, 24, 100)
    real, _ = real_steps(monkeypatch, coming, 0, 30)
    made, _ = simulated_steps(coming, 0, 30)
    assert made == real
    assert made != simulated_steps(coming, 0, PLAIN.blocks)[0]  # or it was not too small
