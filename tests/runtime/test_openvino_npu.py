"""The engine openvino_npu through NPUW on the CPU: what it computes, and that a turn computes its new tokens alone.

Nothing here runs on an NPU. The NPU plugin's pipeline runs on the CPU: the graphs that it makes, its cache, and what it
keeps of a conversation.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edge.runtime.arrays import Ids, Logits
from edge.runtime.chunk import Prefill
from edge.runtime.differences import distance
from edge.runtime.engines.engine import Engine, ResumingEngine, Step
from edge.runtime.engines.openvino_npu import OpenVINONpuEngine
from edge.runtime.engines.openvino_npu_context import Context
from edge.runtime.errors import ContextLengthError, DeviceError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests.conftest import EXACT
from tests.runtime.npu_bundles import BUNDLES, npu_bundle
from tests.tiny import SPECIAL

pytestmark = pytest.mark.slow

NAME = "openvino_npu"
LENGTHS: dict[str, Any] = {"max_prompt_tokens": 256, "max_response_tokens": 64}
EXACT_NPU = EngineSettings(NAME, inference_precision="f32", kv_precision="f32", dynamic_quantization_group=0, **LENGTHS)
CHUNK = 32
USUAL = EngineSettings(NAME, prefill_chunk_tokens=CHUNK, **LENGTHS)
FIRST, SECOND = 24, 12  # new tokens of the two turns
RNG = np.random.default_rng(1)
TURNS = [(RNG.integers(0, 256, 60 + 9 * k).tolist(), RNG.integers(0, 256, 11).tolist()) for k in range(6)]
TOKENS = 256 + len(SPECIAL)  # rows after these are padding
GREEDY: dict[str, Any] = {"ignore_stop_ids": True}


class Written(NamedTuple):
    """An answer by the CPU engine: its prompt, its ids, and the logits that each was chosen from."""

    prompt: list[int]
    ids: list[int]
    rows: Logits


def run(engine: Engine, ids: Sequence[int], chunk: int | None = None) -> Logits:
    """Logits after a prompt that is read from its first token on."""
    sequence = CacheSequence(engine.pool)
    step = chunk or len(ids)
    for begin in range(0, len(ids), step):
        part = np.array(ids[begin : begin + step], np.int64)
        logits = engine.forward(part, sequence, np.array([part.size - 1], np.int64))
    found: Logits = logits[0].copy()
    sequence.free()
    return found


def write(engine: Engine, prompt: list[int], count: int) -> Written:
    """Write greedily, one token after another."""
    sequence = CacheSequence(engine.pool)
    row = engine.forward(np.array(prompt, np.int64), sequence, np.array([len(prompt) - 1], np.int64))[0].copy()
    ids, rows = list[int](), []
    for _ in range(count):
        rows.append(row)
        ids.append(int(row[:TOKENS].argmax()))
        row = engine.decode([Step(sequence, np.array(ids[-1:], np.int64))])[0][0].copy()
    sequence.free()
    return Written(prompt, ids, np.stack(rows))


@pytest.fixture(scope="session", params=BUNDLES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return npu_bundle(request.param, tmp_path_factory)


@pytest.fixture(scope="session")
def one_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return npu_bundle(BUNDLES[1], tmp_path_factory)


@pytest.fixture(scope="session")
def expected(bundle: Path) -> list[Written]:
    """Both turns of every conversation on the CPU engine in float32."""
    with LLM(bundle, EXACT["openvino"]) as llm:
        found = []
        for first, more in TURNS:
            found.append(write(llm.engine, first, FIRST))
            found.append(write(llm.engine, [*first, *found[-1].ids, *more], SECOND))
    return found


@pytest.fixture(scope="session")
def usual(one_bundle: Path) -> Iterator[LLM]:
    with LLM(one_bundle, USUAL) as llm:
        yield llm


@pytest.fixture(scope="session")
def exact(one_bundle: Path) -> Iterator[LLM]:
    with LLM(one_bundle, EXACT_NPU) as llm:
        yield llm


def test_ids_of_the_exact_setting_are_those_of_the_cpu_engine(bundle: Path, expected: list[Written]) -> None:
    """Six prompts with two turns each, and every row of logits."""
    with LLM(bundle, EXACT_NPU) as llm:
        for want in expected:
            found = write(llm.engine, want.prompt, len(want.ids))
            assert found.ids == want.ids
            assert distance(found.rows, want.rows) <= 1e-5
        answer = llm.generate(expected[1].prompt, max_new_tokens=SECOND, **GREEDY).answer()
        assert list(answer.token_ids) == expected[1].ids


def test_ids_of_the_default_setting_differ_only_where_the_choice_is_close(
    bundle: Path, expected: list[Written], capsys: pytest.CaptureFixture[str]
) -> None:
    """The first id that differs had a logit within 1 % of the scale of the best one, in float32."""
    differing, margins = 0, []
    with LLM(bundle, USUAL) as llm:
        for want in expected:
            stream = llm.generate(want.prompt, max_new_tokens=len(want.ids), **GREEDY)
            got = list(stream.answer().token_ids)
            if got != want.ids:
                differing += 1
                place = next(i for i, (a, b) in enumerate(zip(got, want.ids, strict=True)) if a != b)
                row = want.rows[place]
                margins.append(float(row[want.ids[place]] - row[got[place]]) / float(np.abs(row).max()))
    with capsys.disabled():
        sys.stdout.write(f"\n{bundle.name}: {differing} of {len(expected)} answers differ: {np.round(margins, 4)}\n")
    assert max(margins, default=0.0) < 0.01


def test_a_turn_computes_its_new_tokens_alone_and_equals_the_same_prompt_afresh(usual: LLM) -> None:
    """Bit for bit, through four turns, an edited history, a shorter one, and an older branch."""
    llm, engine = usual, usual.engine
    assert isinstance(engine, ResumingEngine)
    first, answer, more = RNG.integers(0, 256, 100).tolist(), RNG.integers(0, 256, 30).tolist(), [7] * 9
    for prompt, least in (
        (first, 0),
        ([*first, *answer, *more], 96),
        ([*first, *answer, *more, *answer, 5, 6], 128),
        ([*first[:-3], *more], 96),  # edited near its end
        (first[:70], 64),  # shorter
        ([*first[:70], *more], 64),
        ([*first, *answer], 64),  # an older branch
        (first[:1], 0),  # one token, which would be read again all the same
        ([3], 0),
        (RNG.integers(0, 256, 200).tolist(), 0),  # another conversation
    ):
        stats = llm.generate(prompt, max_new_tokens=3, **GREEDY).answer().stats
        assert stats is not None
        assert stats.cached_tokens >= least
        assert stats.cached_tokens % CHUNK == 0
        assert stats.cached_tokens < len(prompt)
        continued = _resumed(engine, prompt)
        engine.resume(0)
        assert np.array_equal(continued, run(engine, prompt, CHUNK))
    llm.clear_cache()


def _resumed(engine: ResumingEngine, prompt: list[int]) -> Logits:
    """The logits after a prompt that begins like the last one, of which as much as possible is kept."""
    sequence = CacheSequence(engine.pool)
    kept = engine.resume(len(prompt) - 1)
    assert kept == (len(prompt) - 1) // CHUNK * CHUNK
    sequence.reserve(kept)
    sequence.commit(kept)
    for begin in range(kept, len(prompt), CHUNK):
        part = np.array(prompt[begin : begin + CHUNK], np.int64)
        logits = engine.forward(part, sequence, np.array([part.size - 1], np.int64))
    found: Logits = logits[0].copy()
    sequence.free()
    return found


@pytest.mark.parametrize("setting", ["usual", "exact"])
def test_a_prompt_of_one_token_is_not_taken_for_the_next_of_an_answer(
    setting: str, request: pytest.FixtureRequest
) -> None:
    """NPUW takes it for one unless it is told otherwise."""
    engine: Engine = request.getfixturevalue(setting).engine
    alone = run(engine, [3])
    for before in (RNG.integers(0, 256, 100).tolist(), [9], [3, 3]):
        write(engine, before, 3)
        assert np.array_equal(run(engine, [3]), alone)


def test_the_last_place_of_the_context_is_used_and_right(one_bundle: Path, exact: LLM) -> None:
    """As many tokens as are promised are written; the same ids as on the CPU engine, whose context is longer."""
    engine = exact.engine
    assert isinstance(engine, OpenVINONpuEngine)
    assert (engine.lengths.capacity, engine.info.max_context, engine.info.max_prompt) == (319, 320, 256)
    prompt = RNG.integers(0, 256, 256).tolist()
    answer = exact.generate(prompt, **GREEDY).answer()
    with LLM(one_bundle, EXACT["openvino"]) as llm:
        assert llm.generate(prompt, max_new_tokens=64, **GREEDY).answer().token_ids == answer.token_ids
    assert (len(answer.token_ids), answer.finish_reason) == (64, "length")
    sequence = CacheSequence(engine.pool)
    engine.forward(np.array(prompt, np.int64), sequence, np.array([255], np.int64))
    for token_id in range(63):
        engine.decode([Step(sequence, np.array([token_id], np.int64))])
    with pytest.raises(ContextLengthError, match="320 tokens exceed the 319 that the model is compiled for"):
        engine.decode([Step(sequence, np.array([1], np.int64))])
    sequence.free()


def test_the_engine_recovers_from_a_failure(usual: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request of the failure ends with the error, and the next one is right."""
    engine = usual.engine
    prompt = RNG.integers(0, 256, 90).tolist()
    expected = usual.generate(prompt, max_new_tokens=8, **GREEDY).answer().token_ids
    infer, calls = Context._infer, count(1)

    def failing(self: Context, ids: Ids, past: int) -> Logits:
        return infer(self, ids, past) if next(calls) != 4 else infer(self, np.zeros(300, np.int64), 0)  # too many

    monkeypatch.setattr(Context, "_infer", failing)
    with pytest.raises(DeviceError, match="the engine failed: "):
        usual.generate(prompt, max_new_tokens=8, **GREEDY).answer()
    monkeypatch.undo()
    answer = usual.generate(prompt, max_new_tokens=8, **GREEDY).answer()
    assert answer.token_ids == expected
    assert answer.stats is not None
    assert answer.stats.cached_tokens == 0
    assert engine.pool.num_free == 1


def test_a_cancel_takes_effect_within_one_piece_and_the_next_answer_is_right(usual: LLM) -> None:
    """A prompt is read in pieces; what was read of a cancelled one is kept, and continued."""
    prompt = RNG.integers(0, 256, 250).tolist()
    expected = usual.generate(prompt, max_new_tokens=4, **GREEDY).answer().token_ids
    usual.clear_cache()
    stream = usual.generate(prompt, max_new_tokens=4, **GREEDY)
    first = next(iter(stream))
    assert first.prefill == Prefill(CHUNK, len(prompt))
    stream.close()
    assert usual.stats.running == 0
    assert usual.num_cached_tokens < len(prompt) - CHUNK
    answer = usual.generate(prompt, max_new_tokens=4, **GREEDY).answer()
    assert answer.token_ids == expected
    assert answer.stats is not None
    assert answer.stats.cached_tokens >= CHUNK
    late = usual.generate(RNG.integers(0, 256, 250).tolist(), deadline_s=1e-6, **GREEDY).answer()
    assert (late.finish_reason, late.token_ids) == ("deadline", ())
    assert usual.generate(prompt, max_new_tokens=4, **GREEDY).answer().token_ids == expected
