"""What a model's makers recommend is what it gets, unless a caller says something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge.api import scripted_llm
from edge.runtime.engines.scripted import ScriptedEngine, noise
from edge.runtime.errors import BundleError, SettingsError
from edge.runtime.llm import LLM
from edge.runtime.sampling_defaults import default_sampling
from edge.runtime.settings import Sampling, generation_settings


def test_of_the_models_themselves(shared: Path) -> None:
    files = json.loads((shared / "configs" / "generation_configs.json").read_text(encoding="utf-8"))
    found = {name: default_sampling(json.dumps(values)) for name, values in files.items()}
    assert found["glm-4-9b-chat"] == Sampling(temperature=0.8, top_p=0.8)
    assert found["*-hf"] == Sampling()


@pytest.mark.parametrize(
    ("values", "sampling"),
    [
        ({}, Sampling()),
        ({"temperature": 0.5}, Sampling()),  # transformers samples only if do_sample says so
        ({"do_sample": False, "temperature": 0.5, "repetition_penalty": 1.1}, Sampling(repetition_penalty=1.1)),
        ({"do_sample": True}, Sampling(temperature=1.0)),
        ({"do_sample": True, "top_k": 40, "min_p": 0.1}, Sampling(temperature=1.0, top_k=40, min_p=0.1)),
        ({"do_sample": True, "temperature": None, "top_p": 5}, Sampling(temperature=1.0)),
        ({"do_sample": True, "temperature": "warm"}, Sampling(temperature=1.0)),
        ({"do_sample": "yes", "temperature": 0.5}, Sampling()),
    ],
)
def test_fields(values: dict[str, Any], sampling: Sampling) -> None:
    assert default_sampling(json.dumps(values)) == sampling


def test_odd_files() -> None:
    assert default_sampling(None) == default_sampling("[]") == Sampling()
    with pytest.raises(BundleError, match=r"generation_config\.json"):
        default_sampling("{")


WARM = Sampling(temperature=0.8, top_p=0.8, repetition_penalty=1.1)


def test_a_caller_says_something_else() -> None:
    assert generation_settings(WARM).sampling == WARM
    assert generation_settings(WARM, top_p=None, temperature=0.5).sampling == Sampling(
        0.5, top_p=0.8, repetition_penalty=1.1
    )
    assert generation_settings(WARM, greedy=True).sampling == Sampling()
    assert generation_settings(WARM, greedy=True, repetition_penalty=1.2).sampling == Sampling(repetition_penalty=1.2)
    assert generation_settings(WARM, greedy=False).sampling == WARM
    with pytest.raises(SettingsError, match="greedy"):
        generation_settings(WARM, greedy=True, temperature=0.5)
    with pytest.raises(SettingsError, match="greedy is"):
        generation_settings(WARM, greedy="yes")  # type: ignore[arg-type]


def test_a_model_answers_as_recommended() -> None:
    tokenizer = scripted_llm(noise()).tokenizer
    with LLM.from_engine(ScriptedEngine(noise()), tokenizer, default_sampling=WARM) as llm:
        sampled = llm.generate("a", seed=1, max_new_tokens=9).answer().token_ids
        told = llm.generate("a", seed=1, max_new_tokens=9, temperature=0.8, top_p=0.8, repetition_penalty=1.1)
        greedy = llm.generate("a", max_new_tokens=9, greedy=True).answer().token_ids
        assert told.answer().token_ids == sampled != greedy
    with scripted_llm(noise()) as plain:
        assert plain.generate("a", max_new_tokens=9).answer().token_ids == greedy
