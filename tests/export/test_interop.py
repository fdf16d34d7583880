"""A bundle's IR opens unchanged in openvino_genai and gives the same greedy ids there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from benchmarks.genai import with_openvino_tokenizer
from edge.runtime.llm import LLM
from tests.conftest import EXACT
from tests.export.test_reference import PROMPTS

NEW_TOKENS = 32


@pytest.fixture(scope="module")
def genai_folder(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle beside a tokenizer that openvino_genai reads, converted from the bundle's own."""
    return with_openvino_tokenizer(demo_bundle, tmp_path_factory.mktemp("genai") / "bundle")


@pytest.mark.parametrize("backend", ["PA", "SDPA"])
def test_same_greedy_ids(genai_folder: Path, backend: str) -> None:
    import openvino_genai

    config = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    pipeline = openvino_genai.LLMPipeline(str(genai_folder), "CPU", ATTENTION_BACKEND=backend, **config)
    greedy = openvino_genai.GenerationConfig()
    greedy.max_new_tokens, greedy.ignore_eos, greedy.do_sample = NEW_TOKENS, True, False
    llm = LLM(genai_folder, EXACT)
    for prompt in PROMPTS:
        ids = llm.tokenizer.encode(llm.render([{"role": "user", "content": prompt}]))
        ours = [i for c in llm.generate(ids, max_new_tokens=NEW_TOKENS, ignore_stop_ids=True) for i in c.token_ids]
        tokens = np.array([ids], np.int64)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(tokens), ov.Tensor(np.ones_like(tokens)))
        assert list(pipeline.generate(inputs, greedy).tokens[0]) == ours, prompt


def test_batch_with_left_padding_equals_single(genai_folder: Path) -> None:
    """The stateful IR by hand, as optimum-intel drives it: attention_mask and position_ids mean what they say."""
    core = ov.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    model = core.compile_model(core.read_model(genai_folder / "openvino_model.xml"), "CPU", config)
    long, short = [504, 3575, 282, 4649], [504, 3575]

    def last_logits(rows: list[list[int]]) -> np.ndarray:
        width = max(map(len, rows))
        mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        request = model.create_infer_request()
        request.infer(
            {
                "input_ids": np.array([[0] * (width - len(row)) + row for row in rows]),
                "attention_mask": mask,
                "position_ids": np.maximum(mask.cumsum(-1) - 1, 0),
                "beam_idx": np.arange(len(rows), dtype=np.int32),
            }
        )
        return np.array(request.get_output_tensor(0).data[:, -1])

    together = last_logits([long, short])
    for row, alone in zip(together, (long, short), strict=True):
        expected = last_logits([alone])[0]
        assert np.abs(row - expected).max() <= 1e-5 * np.abs(expected).max()
