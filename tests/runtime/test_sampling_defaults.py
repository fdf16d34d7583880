"""What a model's makers recommend is what a caller gets who asks for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.api import scripted_llm
from edge.runtime.engines.scripted import ScriptedEngine, noise
from edge.runtime.errors import BundleError, SettingsError
from edge.runtime.llm import LLM
from edge.runtime.sampling_defaults import recommended_sampling
from edge.runtime.settings import GenerationOptions, Sampling, generation_settings


def test_of_the_models_themselves(shared: Path) -> None:
    files = json.loads((shared / "configs" / "generation_configs.json").read_text(encoding="utf-8"))
    found = {name: recommended_sampling(json.dumps(values)) for name, values in files.items()}
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
    assert recommended_sampling(json.dumps(values)) == sampling


def test_odd_files() -> None:
    assert recommended_sampling(None) == recommended_sampling("[]") == Sampling()
    with pytest.raises(BundleError, match=r"generation_config\.json"):
        recommended_sampling("{")


WARM = Sampling(temperature=0.8, top_p=0.8, repetition_penalty=1.1)


def test_what_is_not_given() -> None:
    assert generation_settings().sampling == generation_settings(WARM).sampling == Sampling()
    assert generation_settings(WARM, sampling=None).sampling == Sampling()
    assert generation_settings(WARM, sampling="greedy").sampling == Sampling()
    assert generation_settings(WARM, sampling="greedy", temperature=0.5).sampling == Sampling(0.5)
    assert generation_settings(WARM, sampling="model").sampling == WARM
    assert generation_settings(WARM, sampling="model", top_p=None, temperature=0.5).sampling == replace(
        WARM, temperature=0.5
    )
    assert generation_settings(sampling="model").sampling == Sampling()
    assert generation_settings(sampling=WARM, top_k=4).sampling == replace(WARM, top_k=4)
    for wrong in ("warm", True, 0.8, {"temperature": 0.8}):
        with pytest.raises(SettingsError, match=r"sampling is .*, expected 'greedy', 'model' or an edge\.Sampling"):
            generation_settings(WARM, sampling=wrong)  # type: ignore[arg-type]


def test_an_answer_is_greedy_unless_it_is_told_otherwise() -> None:
    tokenizer = scripted_llm(noise()).tokenizer
    with LLM.from_engine(ScriptedEngine(noise()), tokenizer, recommended_sampling=WARM) as llm:
        greedy = llm.generate("a", max_new_tokens=9).answer().token_ids
        assert llm.generate("a", max_new_tokens=9, sampling="greedy").answer().token_ids == greedy
        sampled = llm.generate("a", seed=1, max_new_tokens=9, sampling="model").answer().token_ids
        ways: list[GenerationOptions] = [
            {"sampling": llm.recommended_sampling, "max_new_tokens": 9, "seed": 1},
            {"temperature": 0.8, "top_p": 0.8, "repetition_penalty": 1.1, "max_new_tokens": 9, "seed": 1},
        ]
        for way in ways:
            assert llm.generate("a", **way).answer().token_ids == sampled != greedy
    with scripted_llm(noise()) as plain:
        assert plain.generate("a", max_new_tokens=9, sampling="model").answer().token_ids == greedy
