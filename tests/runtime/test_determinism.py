"""What the documentation calls bit-equal is: with `reproducible`, on both engines, with their default roundings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Unpack

import numpy as np
import pytest

from edge.runtime.bundle import open_bundle
from edge.runtime.engines.choice import open_engine
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.prompt_like import PromptLike
from edge.runtime.settings import EngineSettings, GenerationOptions, SpeculationSettings

SLOW = pytest.mark.slow
IDS = np.random.default_rng(3).integers(0, 40_000, 400)
COPY = "Repeat this text: The quick brown fox jumps over the lazy dog, and the lazy dog looks at the quick brown fox. "
CONTEXT = [{"role": "user", "content": COPY * 3}]


@pytest.fixture(scope="module")
def runs(demo_bundle: Path, engine: str) -> Engine:
    return open_engine(open_bundle(demo_bundle), EngineSettings(engine, max_context=1024, reproducible=True))


def last(size: int) -> np.ndarray:
    return np.array([size - 1])


def prefill(engine: Engine, cuts: list[int]) -> tuple[CacheSequence, np.ndarray]:
    """The first cuts[-1] tokens in pieces; logits of the last."""
    sequence = CacheSequence(engine.pool)
    for begin, end in zip([0, *cuts], cuts, strict=False):
        logits = engine.forward(IDS[begin:end], sequence, last(end - begin))[0].copy()
    return sequence, logits


def decode(engine: Engine, sequence: CacheSequence, sizes: list[int], others: list[CacheSequence]) -> np.ndarray:
    """Logits of the next tokens, in steps of these sizes, beside other sequences."""
    found = []
    for size in sizes:
        at = sequence.num_tokens
        steps = [Step(sequence, IDS[at : at + size]), *(Step(other, IDS[:1]) for other in others)]
        found.append(engine.decode(steps)[0].copy())
    return np.concatenate(found)


@pytest.fixture(scope="module")
def reference(runs: Engine) -> tuple[np.ndarray, np.ndarray]:
    """200 prompt tokens at once, then 24 one by one."""
    sequence, logits = prefill(runs, [200])
    decoded = decode(runs, sequence, [1] * 24, [])
    sequence.free()
    return logits, decoded


@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param([199, 200], marks=SLOW),
        [1, 2, 3, 200],
        pytest.param([64, 128, 192, 200], marks=SLOW),
        [31, 33, 200],
    ],
    ids=str,
)
def test_prefill_in_any_chunks(runs: Engine, reference: tuple[np.ndarray, np.ndarray], cuts: list[int]) -> None:
    sequence, logits = prefill(runs, cuts)
    np.testing.assert_array_equal(logits, reference[0])
    np.testing.assert_array_equal(decode(runs, sequence, [1] * 24, []), reference[1])
    sequence.free()


@pytest.mark.parametrize(
    "sizes",
    [[24], pytest.param([2] * 12, marks=SLOW), [7, 1, 5, 1, 1, 9], pytest.param([3] * 8, marks=SLOW)],
    ids=str,
)
def test_decode_in_steps_of_any_size(runs: Engine, reference: tuple[np.ndarray, np.ndarray], sizes: list[int]) -> None:
    """As the verification of drafts does."""
    sequence, _ = prefill(runs, [200])
    np.testing.assert_array_equal(decode(runs, sequence, sizes, []), reference[1])
    sequence.free()


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=SLOW), 6])
def test_decode_beside_any_others(runs: Engine, reference: tuple[np.ndarray, np.ndarray], count: int) -> None:
    others = [prefill(runs, [20 + 9 * i])[0] for i in range(min(count, runs.pool.num_free - 1))]
    assert others
    sequence, _ = prefill(runs, [200])
    np.testing.assert_array_equal(decode(runs, sequence, [1] * 24, others), reference[1])
    for held in [sequence, *others]:
        held.free()


def test_rejected_drafts_leave_no_trace(runs: Engine, reference: tuple[np.ndarray, np.ndarray]) -> None:
    sequence, _ = prefill(runs, [200])
    found = []
    for i in range(24):
        wrong = np.concatenate([IDS[200 + i : 201 + i], IDS[300 : 300 + i % 7]])
        found.append(runs.decode([Step(sequence, wrong)])[0][0].copy())
        sequence.trim(201 + i)
    np.testing.assert_array_equal(found, reference[1])
    sequence.free()


def test_forks(runs: Engine, reference: tuple[np.ndarray, np.ndarray]) -> None:
    sequence, _ = prefill(runs, [200])
    other = sequence.fork()
    runs.decode([Step(other, IDS[50:57])])
    np.testing.assert_array_equal(decode(runs, sequence, [1] * 24, [other]), reference[1])
    sequence.free()
    other.free()


def llm_of(
    demo_bundle: Path,
    engine: str,
    speculation: SpeculationSettings | None = None,
    draft_store: Path | None = None,
) -> LLM:
    return LLM(demo_bundle, EngineSettings(engine, reproducible=True), speculation, draft_store)


@pytest.fixture(scope="module")
def plain(demo_bundle: Path, engine: str) -> Callable[..., tuple[int, ...]]:
    """What is answered to a prompt alone; asked for again, it is not computed again."""
    llm = llm_of(demo_bundle, engine)
    known: dict[str, tuple[int, ...]] = {}

    def answer(prompt: PromptLike, **settings: Unpack[GenerationOptions]) -> tuple[int, ...]:
        key = repr((prompt, settings))
        limited: GenerationOptions = {**settings, "max_new_tokens": 70}
        if key not in known:
            llm.clear_cache()
            known[key] = llm.generate(prompt, **limited).answer().token_ids
        return known[key]

    return answer


WARM: GenerationOptions = {"temperature": 0.7, "seed": 4}
PENALIZED: GenerationOptions = {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 2}


@pytest.fixture(scope="module")
def drafting(demo_bundle: Path, engine: str) -> LLM:
    return llm_of(demo_bundle, engine, speculation=SpeculationSettings())


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param({}, id="greedy"),
        pytest.param(WARM, id="warm", marks=SLOW),
        pytest.param(PENALIZED, id="penalized"),
    ],
)
def test_speculation_changes_no_id(
    drafting: LLM, plain: Callable[..., tuple[int, ...]], sampling: GenerationOptions
) -> None:
    """Of a text that is copied, drafts and all; drawn ids follow the same random numbers."""
    limited: GenerationOptions = {**sampling, "max_new_tokens": 70}
    for _ in range(2):  # costs and chances have been learned the second time
        drafting.clear_cache()
        answer = drafting.generate(CONTEXT, **limited).answer()
        assert answer.token_ids == plain(CONTEXT, **sampling)
        assert answer.stats is not None
        if not sampling:
            assert answer.stats.accepted_tokens > answer.stats.new_tokens / 2


def test_a_prefix_hit_changes_no_id(
    demo_bundle: Path, engine: str, plain: Callable[..., tuple[int, ...]], tmp_path: Path
) -> None:
    """In memory, and out of a file in a model that was just loaded."""
    system = {"role": "system", "content": "You are a guide in the museum of Ghent and speak of paintings only. " * 8}
    prompts = [[system, {"role": "user", "content": text}] for text in ("Who are you?", "Where is the exit?")]
    first, second = llm_of(demo_bundle, engine), llm_of(demo_bundle, engine)
    saved = first.prefixes.save(first.system_prefix(str(system["content"])), tmp_path / "guide")
    assert second.prefixes.load(tmp_path / "guide") == second.prefixes.load(tmp_path / "guide") == saved
    assert len(second._scheduler.loaded.snapshots) == 1
    for llm in (first, second):
        for prompt in prompts:
            answer = llm.generate(prompt, max_new_tokens=70).answer()
            assert answer.token_ids == plain(prompt)
            assert answer.stats is not None
            assert answer.stats.cached_tokens >= saved.num_tokens


def test_answers_asked_before_are_drafted_from_the_store(
    demo_bundle: Path, engine: str, plain: Callable[..., tuple[int, ...]], tmp_path: Path
) -> None:
    prompt = [{"role": "user", "content": "Write a short poem about the sea."}]
    accepted = []
    for _ in range(2):
        with llm_of(demo_bundle, engine, speculation=SpeculationSettings(), draft_store=tmp_path / "answers") as llm:
            answer = llm.generate(prompt, max_new_tokens=70).answer()
        assert answer.token_ids == plain(prompt)
        assert answer.stats is not None
        accepted.append(answer.stats.accepted_tokens)
    assert accepted[1] > max(40, accepted[0])
