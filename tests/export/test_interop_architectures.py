"""Bundles of the architectures beside GLM's own open in the same peers, with the same greedy ids there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch

from edge.export.pipeline import export
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests import tiny
from tests.conftest import EXACT
from tests.export.test_interop import EXACT_PROPERTIES, NEW_TOKENS, answers, onnx_genai, our_answer, our_ids, prompt_ids

__all__ = ["onnx_genai"]  # a fixture
CASES = [case for case in tiny.TINIES if case.architecture in ("llama", "qwen3")]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float16, and with as many tokens as the vocabulary has rows: our runtime never gives an id that is none."""
    folder = tmp_path_factory.mktemp(request.param.name)
    tiny.make(replace(request.param, vocab_size=256 + len(tiny.SPECIAL)), folder / "checkpoint")
    export(folder / "checkpoint", folder / "bundle", "fp16")
    return folder / "bundle"


@pytest.mark.parametrize("backend", ["PA", "SDPA"])
def test_same_greedy_ids_in_genai(bundle: Path, backend: str) -> None:
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(bundle), "CPU", ATTENTION_BACKEND=backend, **EXACT_PROPERTIES)
    greedy = openvino_genai.GenerationConfig()
    greedy.max_new_tokens, greedy.ignore_eos, greedy.do_sample = NEW_TOKENS, True, False
    llm = LLM(bundle, EXACT["openvino"])
    for ids in prompt_ids(llm)[:2]:
        tokens = np.array([ids], np.int64)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(tokens), ov.Tensor(np.ones_like(tokens)))
        assert list(pipeline.generate(inputs, greedy).tokens[0]) == our_ids(llm, ids)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    theirs = pipeline.get_tokenizer().apply_chat_template(question, add_generation_prompt=True)
    assert theirs == llm.render(question)


def test_same_greedy_ids_in_optimum(bundle: Path) -> None:
    """Which takes its configuration class from config.json."""
    optimum = pytest.importorskip("optimum.intel")

    model = optimum.OVModelForCausalLM.from_pretrained(bundle, ov_config=EXACT_PROPERTIES, local_files_only=True)
    assert model.config.model_type == json.loads((bundle / "config.json").read_text())["model_type"]
    llm = LLM(bundle, EXACT["openvino"])
    for ids in prompt_ids(llm)[:2]:
        tokens = torch.tensor([ids])
        out = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert out[0, len(ids) :].tolist() == our_ids(llm, ids)


def test_same_greedy_ids_in_onnx_genai(bundle: Path, onnx_genai: Any) -> None:
    llm, model = LLM(bundle, EngineSettings("onnx")), onnx_genai.Model(str(bundle))
    for ids in prompt_ids(llm)[:2]:
        assert answers(onnx_genai, model, [ids]) == [our_answer(llm, ids)]
