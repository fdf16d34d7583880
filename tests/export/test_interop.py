"""A bundle opens unchanged in openvino_genai, optimum-intel and onnxruntime-genai, with the same greedy ids there."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch

from edge.export.pipeline import export
from edge.runtime import bundle as bundles
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests import tiny
from tests.conftest import EXACT
from tests.export.test_reference import PROMPTS

pytestmark = pytest.mark.slow  # other programs, each of which compiles or exports the same models again

NEW_TOKENS = 32
EXACT_PROPERTIES = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}


@pytest.fixture(scope="module")
def glm_bundle(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GLM with the real vocabulary, tokenizer and template; a layer of GLM-4's kind, 151,552 tokens."""
    folder = tmp_path_factory.mktemp("glm")
    tiny.make(tiny.Tiny("real tokenizer", vocab_size=151552, max_position_embeddings=1024), folder / "checkpoint")
    shutil.copy(shared / "glm4-tokenizer" / "tokenizer.model", folder / "checkpoint")
    shutil.copy(shared / "glm4-tokenizer" / "tokenizer_config.json", folder / "checkpoint")
    shutil.copy(shared / "chat-templates" / "glm-4-9b-chat.jinja", folder / "checkpoint" / "chat_template.jinja")
    (folder / "checkpoint" / "tokenizer.json").unlink()
    config = json.loads((folder / "checkpoint" / "config.json").read_text())
    config["eos_token_id"] = [151329, 151336, 151338]
    (folder / "checkpoint" / "config.json").write_text(json.dumps(config))
    (folder / "checkpoint" / "generation_config.json").write_text(json.dumps({"eos_token_id": config["eos_token_id"]}))
    export(folder / "checkpoint", folder / "bundle", "int8-asym")
    return folder / "bundle"


@pytest.fixture(params=["demo", "tiny GLM with the real tokenizer"])
def bundle(request: pytest.FixtureRequest) -> Path:
    name = "demo_bundle" if request.param == "demo" else "glm_bundle"
    return Path(request.getfixturevalue(name))


def our_ids(llm: LLM, ids: list[int], new_tokens: int = NEW_TOKENS) -> list[int]:
    return [i for c in llm.generate(ids, max_new_tokens=new_tokens, ignore_stop_ids=True) for i in c.token_ids]


def prompt_ids(llm: LLM) -> list[list[int]]:
    return [llm.tokenizer.encode(llm.render([{"role": "user", "content": prompt}])) for prompt in PROMPTS]


@cache
def our_answers(bundle: Path) -> list[tuple[list[int], list[int]]]:
    """Ids of each prompt and of its greedy answer, in float32."""
    llm = LLM(bundle, EXACT["openvino"])
    return [(ids, our_ids(llm, ids)) for ids in prompt_ids(llm)]


@pytest.mark.parametrize("backend", ["PA", "SDPA"])
def test_same_greedy_ids_in_genai(bundle: Path, backend: str) -> None:
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(bundle), "CPU", ATTENTION_BACKEND=backend, **EXACT_PROPERTIES)
    greedy = openvino_genai.GenerationConfig()
    greedy.max_new_tokens, greedy.ignore_eos, greedy.do_sample = NEW_TOKENS, True, False
    for ids, ours in our_answers(bundle):
        tokens = np.array([ids], np.int64)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(tokens), ov.Tensor(np.ones_like(tokens)))
        assert list(pipeline.generate(inputs, greedy).tokens[0]) == ours


def test_same_greedy_ids_in_optimum(bundle: Path) -> None:
    optimum = pytest.importorskip("optimum.intel")

    model = optimum.OVModelForCausalLM.from_pretrained(bundle, ov_config=EXACT_PROPERTIES, local_files_only=True)
    for ids, ours in our_answers(bundle):
        tokens = torch.tensor([ids])
        out = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert out[0, len(ids) :].tolist() == ours


def test_text_in_and_text_out(bundle: Path) -> None:
    """Template, tokenizer and detokenizer of the bundle, as openvino_genai uses them."""
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(bundle), "CPU", **EXACT_PROPERTIES)
    greedy = openvino_genai.GenerationConfig()
    greedy.max_new_tokens, greedy.ignore_eos, greedy.do_sample = 24, True, False
    llm = LLM(bundle, EXACT["openvino"])
    for prompt in (*PROMPTS, "法国的首都是哪里？"):
        ours = llm.chat([{"role": "user", "content": prompt}], max_new_tokens=24, ignore_stop_ids=True).text()
        assert pipeline.generate(prompt, greedy).strip() == ours.strip()


STOP_IDS = (151329, 151336, 151338)


@dataclass(frozen=True)
class Stopping:
    """A bundle in which the answers to three prompts end at their third token, each by another stop id."""

    bundle: Path
    answers: list[tuple[list[int], list[int], int]]  # ids of a prompt, of its answer without the stop id, the stop id


@pytest.fixture(scope="module")
def stopping(glm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Stopping:
    """The third ids of three greedy answers take the numbers of the stop ids, by swapping vocabulary rows."""
    llm = LLM(glm_bundle, EXACT["openvino"])
    chosen: list[tuple[list[int], list[int]]] = []
    for number in range(100):
        ids = llm.tokenizer.encode(f"{number} is the number of")
        both = [*chosen, (ids, our_ids(llm, ids, 3))]
        thirds = {answer[2] for _, answer in both}
        if len(thirds) == len(both) and not thirds & {token for _, answer in both for token in answer[:2]}:
            chosen = both
        if len(chosen) == len(STOP_IDS):
            break
    assert len(chosen) == len(STOP_IDS), "no three prompts with answers apart"
    folder = tmp_path_factory.mktemp("stopping")
    checkpoint = Path(shutil.copytree(glm_bundle.parent / "checkpoint", folder / "checkpoint"))
    for (_, answer), stop in zip(chosen, STOP_IDS, strict=True):
        swap_head_rows(checkpoint, answer[2], stop)
    export(checkpoint, folder / "bundle", "int8-asym")
    found = [(ids, answer[:2], stop) for (ids, answer), stop in zip(chosen, STOP_IDS, strict=True)]
    return Stopping(folder / "bundle", found)


def test_every_stop_id_ends_an_answer_in_genai(stopping: Stopping) -> None:
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(stopping.bundle), "CPU", **EXACT_PROPERTIES)
    config = pipeline.get_generation_config()
    config.max_new_tokens, config.do_sample = 8, False
    llm = LLM(stopping.bundle, EXACT["openvino"])
    for ids, answer, stop in stopping.answers:
        tokens = np.array([ids], np.int64)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(tokens), ov.Tensor(np.ones_like(tokens)))
        theirs = list(pipeline.generate(inputs, config).tokens[0])
        *_, last = llm.generate(ids, max_new_tokens=8)
        assert last.finish_reason == "stop"
        assert [i for i in theirs if i != stop] == answer


def swap_head_rows(checkpoint: Path, a: int, b: int) -> None:
    from safetensors.numpy import load_file, save_file

    tensors: dict[str, Any] = load_file(checkpoint / "model.safetensors")
    head = tensors["lm_head.weight"].copy()
    head[[a, b]] = head[[b, a]]
    save_file(tensors | {"lm_head.weight": head}, checkpoint / "model.safetensors")


def test_batch_with_left_padding_equals_single(demo_bundle: Path) -> None:
    """The stateful IR by hand, as optimum-intel drives it: attention_mask and position_ids mean what they say."""
    core = ov.Core()
    model = core.compile_model(core.read_model(demo_bundle / "openvino_model.xml"), "CPU", EXACT_PROPERTIES)
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


@pytest.fixture(scope="module")
def onnx_genai() -> Any:
    """onnxruntime_genai, which reports to a server unless this variable is set before it opens a model."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    return pytest.importorskip("onnxruntime_genai")


def answers(onnx_genai: Any, model: Any, prompts: list[list[int]], new_tokens: int = NEW_TOKENS) -> list[list[int]]:
    """Greedy ids of onnxruntime-genai, with what the bundle says; several prompts are one batch."""
    width = max(map(len, prompts))
    pad = onnx_genai.Tokenizer(model).pad_token_id if len(prompts) > 1 else 0
    parameters = onnx_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=width + new_tokens, batch_size=len(prompts))
    generator = onnx_genai.Generator(model, parameters)
    generator.append_tokens(np.array([ids + [pad] * (width - len(ids)) for ids in prompts], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [generator.get_sequence(row)[width:].tolist() for row in range(len(prompts))]


def our_answer(llm: LLM, ids: list[int], new_tokens: int = NEW_TOKENS) -> list[int]:
    """Greedy ids before a stop id. The prompt is computed whole: one row and many are rounded by different kernels."""
    llm.clear_cache()
    found = [i for c in llm.generate(ids, max_new_tokens=new_tokens) for i in c.token_ids]
    return [i for i in found if i not in llm.stop_ids]


@pytest.mark.parametrize("name", ["demo", "tiny GLM with the real tokenizer"])
def test_same_greedy_ids_in_onnx_genai(
    name: str, request: pytest.FixtureRequest, demo_gguf: Path, tmp_path: Path, onnx_genai: Any
) -> None:
    """With float activations, which do not turn a last bit of cos and sin into another token."""
    if name == "demo":
        export(demo_gguf, bundle := tmp_path / "bundle", "fp16", format="onnx")
    else:
        bundle = request.getfixturevalue("glm_bundle")
    llm, model = LLM(bundle, EngineSettings("onnx")), onnx_genai.Model(str(bundle))
    for ids in prompt_ids(llm):
        assert answers(onnx_genai, model, [ids]) == [our_answer(llm, ids)]


def test_4_bits_in_onnx_genai(demo_bundle: Path, onnx_genai: Any) -> None:
    """With activations rounded to 8 bits, as our runtime has them too; the first tokens are far from a tie."""
    llm, model = LLM(demo_bundle, EngineSettings("onnx")), onnx_genai.Model(str(demo_bundle))
    ids = llm.tokenizer.encode(llm.render([{"role": "user", "content": PROMPTS[0]}]))
    ours = our_answer(llm, ids, 6)
    assert answers(onnx_genai, model, [ids], 6) == [ours]
    assert "Paris" in llm.tokenizer.decode(our_answer(llm, ids)), "the capital of France"


def test_text_in_and_text_out_in_onnx_genai(bundle: Path, onnx_genai: Any) -> None:
    """Template, tokenizer and detokenizer of the bundle, as onnxruntime-genai uses them."""
    tokenizer = onnx_genai.Tokenizer(onnx_genai.Model(str(bundle)))
    llm = LLM(bundle, EngineSettings("onnx"))
    for prompt in (*PROMPTS, "法国的首都是哪里？", 'a "quoted" \\ line\nand another 🙂'):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
        assert text == llm.render(messages)
        assert tokenizer.encode(text).tolist() == llm.tokenizer.encode(text)
        assert tokenizer.decode(np.array(llm.tokenizer.encode(prompt), np.int32)) == prompt


def test_onnx_genai_reads_glm4_text_as_golden(glm_bundle: Path, onnx_genai: Any, shared: Path) -> None:
    tokenizer = onnx_genai.Tokenizer(onnx_genai.Model(str(glm_bundle)))
    golden = json.loads((shared / "glm4-tokenizer" / "golden_encodings.json").read_text(encoding="utf-8"))
    for name, case in golden.items():
        assert tokenizer.encode(case["text"]).tolist() == case["ids"], name
        assert tokenizer.decode(np.array(case["ids"], np.int32)) == case["text"], name


def test_every_stop_id_ends_an_answer_in_onnx_genai(stopping: Stopping, onnx_genai: Any) -> None:
    model = onnx_genai.Model(str(stopping.bundle))
    for ids, answer, _ in stopping.answers:
        assert answers(onnx_genai, model, [ids], 8) == [answer]


def test_batch_in_onnx_genai_equals_single(glm_bundle: Path, onnx_genai: Any) -> None:
    """Prompts of different lengths, which are padded on the right: each has its last token in another row."""
    llm = LLM(glm_bundle, EngineSettings("onnx"))
    prompts = prompt_ids(llm)
    assert len({len(ids) for ids in prompts}) > 1
    together = answers(onnx_genai, onnx_genai.Model(str(glm_bundle)), prompts, 16)
    assert together == [our_answer(llm, ids, 16) for ids in prompts]


@pytest.mark.parametrize("recipe", ["fp16", "int4-asym-g128"])
def test_onnx_genai_opens_a_bundle_without_openvino(recipe: str, onnx_genai: Any, tmp_path: Path) -> None:
    """Every row of the vocabulary is a token: our runtime never gives an id that is none, onnxruntime-genai may."""
    tiny.make(tiny.Tiny("all tokens", vocab_size=256 + len(tiny.SPECIAL)), tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "bundle", recipe, format="onnx")
    llm, model = LLM(tmp_path / "bundle"), onnx_genai.Model(str(tmp_path / "bundle"))
    ids = prompt_ids(llm)[0]
    assert answers(onnx_genai, model, [ids]) == [our_answer(llm, ids)]


def test_bundle_without_onnx_graphs_is_none_for_onnx_genai(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path / "bundle", "int8-asym", format="openvino")
    assert not (tmp_path / "bundle" / bundles.GENAI_CONFIG).exists()
    assert not list((tmp_path / "bundle").glob("*.onnx"))
