"""One bundle, two engines: the same logits and the same greedy ids."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edge.export.compress.recipes import DEFAULT
from edge.export.pipeline import export
from edge.runtime.bundle import open_bundle
from edge.runtime.differences import FLOAT32_BOUND
from edge.runtime.engines import registry
from edge.runtime.engines.choice import choose, open_engine
from edge.runtime.errors import DeviceError
from edge.runtime.extras import install_command
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests.conftest import ENGINES, EXACT
from tests.export.test_reference import PROMPTS
from tests.tiny import TINIES, Tiny, make

IDS = np.random.default_rng(9).integers(0, 256, 60)


def logits(bundle: Path, engine: str, ids: np.ndarray) -> np.ndarray:
    """(T, vocab), in chunks, so that the cache takes part."""
    runs = open_engine(open_bundle(bundle), EXACT[engine])
    sequence, rows = CacheSequence(runs.pool), []
    for part in np.split(ids, [33, 34, 50]):
        rows.append(runs.forward(part, sequence, np.arange(part.size)).copy())
    return np.concatenate(rows)


def distance(bundle: Path, ids: np.ndarray) -> float:
    one, other = (logits(bundle, engine, ids) for engine in ENGINES)
    return float(np.abs(one - other).max() / np.abs(one).max())


FAST = [(tiny, DEFAULT) for tiny in TINIES] + [
    (TINIES[0], recipe) for recipe in ("fp16", "int8-asym", "int8-sym", "int4-sym-channel")
]
MORE = [(tiny, "fp16") for tiny in TINIES[1:]] + [
    (TINIES[3], recipe) for recipe in ("int8-asym", "int8-sym", "int4-sym-channel")
]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in MORE]


@pytest.mark.parametrize(("tiny", "recipe"), [*FAST, *SLOW], ids=lambda value: getattr(value, "name", value))
def test_logits_of_tiny_models(tiny: Tiny, recipe: str, tmp_path: Path) -> None:
    make(tiny, tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "bundle", recipe)
    assert distance(tmp_path / "bundle", IDS) <= FLOAT32_BOUND


def test_logits_of_the_demo_model(demo_bundle: Path) -> None:
    assert distance(demo_bundle, IDS) <= FLOAT32_BOUND


def test_greedy_ids_of_the_demo_model(demo_bundle: Path) -> None:
    """3 prompts, 32 tokens each. About 15 s."""
    one, other = (LLM(demo_bundle, EXACT[engine]) for engine in ENGINES)
    for prompt in PROMPTS[:3]:
        ids = one.tokenizer.encode(one.render([{"role": "user", "content": prompt}]))
        answers = [
            [i for chunk in llm.generate(ids, max_new_tokens=32, ignore_stop_ids=True) for i in chunk.token_ids]
            for llm in (one, other)
        ]
        assert answers[0] == answers[1], prompt


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "onnx"),
        ({"expected_prompt_tokens": 1499}, "onnx"),
        ({"expected_prompt_tokens": 1500}, "openvino"),
        ({"expected_clients": 1}, "onnx"),
        ({"expected_clients": 2}, "openvino"),
        ({"expected_clients": 16, "engine": "onnx"}, "onnx"),
        ({"max_context": 256}, "onnx"),
        ({"max_context": 256, "kv_cache_bytes": 100_000}, "openvino"),
        ({"device": "GPU"}, "openvino"),
        ({"engine": "openvino"}, "openvino"),
        ({"engine": "onnx", "expected_prompt_tokens": 5000}, "onnx"),
    ],
)
def test_auto_follows_its_rule(int4_bundle: Path, settings: dict[str, object], expected: str) -> None:
    assert choose(open_bundle(int4_bundle), EngineSettings(**settings)) == expected  # type: ignore[arg-type]


def test_auto_takes_openvino_for_other_weights(tiny_bundle: Path) -> None:
    assert choose(open_bundle(tiny_bundle), EngineSettings()) == "openvino"


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_auto_takes_what_a_bundle_holds(tiny_checkpoint: Path, tmp_path: Path, format: str) -> None:
    export(tiny_checkpoint, tmp_path / "bundle", "int8-asym", format=format)  # type: ignore[arg-type]
    assert choose(open_bundle(tmp_path / "bundle"), EngineSettings()) == format


def test_auto_takes_what_is_installed(int4_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(int4_bundle)
    monkeypatch.setattr(registry, "find_spec", lambda name: name == "openvino" or None)
    assert choose(bundle, EngineSettings()) == "openvino"
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=re.escape(f"{install_command('openvino')} or {install_command('onnx')}")):
        choose(bundle, EngineSettings())
