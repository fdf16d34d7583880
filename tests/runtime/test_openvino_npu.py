"""The engine openvino_npu through NPUW on the CPU: what it computes, and that a turn computes its new tokens alone.

Nothing here runs on an NPU. The NPU plugin's pipeline runs on the CPU: the graphs that it makes, its cache, and what it
keeps of a conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edge.runtime.arrays import Logits
from edge.runtime.engines.engine import Engine, ResumingEngine, Step
from edge.runtime.engines.openvino_npu import OpenVINONpuEngine
from edge.runtime.errors import ContextLengthError, DeviceError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests.conftest import EXACT
from tests.runtime.npu_bundles import BUNDLES, npu_bundle

pytestmark = pytest.mark.slow

NAME = "openvino_npu"
LENGTHS: dict[str, Any] = {"max_prompt_tokens": 256, "max_response_tokens": 64}
EXACT_NPU = EngineSettings(
    NAME, inference_precision="f32", kv_precision="f32", dynamic_quantization_group=0, **LENGTHS
)
CHUNK = 32
USUAL = EngineSettings(NAME, prefill_chunk_tokens=CHUNK, **LENGTHS)
FIRST, SECOND = 24, 12  # new tokens of the two turns
RNG = np.random.default_rng(1)
TURNS = [(RNG.integers(0, 256, 60 + 9 * k).tolist(), RNG.integers(0, 256, 11).tolist()) for k in range(6)]
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
        ids.append(int(row.argmax()))
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
            assert np.abs(found.rows - want.rows).max() <= 1e-5 * np.abs(want.rows).max()
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
        print(f"\n{bundle.name}: {differing} of {len(expected)} answers differ, margins {np.round(margins, 4)}")
    assert max(margins, default=0.0) < 0.01
