"""Architectures: read in full size, refused where they compute something else, and run where they are not GLM's own.

That logits equal those of transformers is shown for each by `test_reference.py` and its like, over `tiny.TINIES`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, PretrainedConfig

from edge.export.architectures.registry import ARCHITECTURES, describe
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.export.checkpoint.fields import Fields
from edge.export.compress.recipes import DEFAULT
from edge.export.pipeline import export
from edge.export.weights.adapter import Adapter
from edge.runtime.errors import ConfigError
from edge.runtime.llm import LLM
from edge.runtime.spec import ModelSpec
from tests import tiny
from tests.conftest import EXACT
from tests.export.test_adapter import assert_merges_as_peft, save_adapter
from tests.export.test_reference import TIMES_FLOAT32, logits_in_chunks, write_llama_gguf, write_plain_gguf

# Shapes of published models: transformers' defaults are those of small or old ones. Those of GLM are from fine-tunes
# of GLM-4-0414; GLM-Z1 has the same. model_type, what config.json says, parameters.
PUBLISHED: Mapping[str, tuple[str, Mapping[str, Any], int]] = {
    "Llama 3 8B": ("llama", {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
    }, 8_030_261_248),
    "Mistral Nemo 12B": ("mistral", {
        "vocab_size": 131_072, "hidden_size": 5120, "intermediate_size": 14_336, "num_hidden_layers": 40,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 1e6, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131_072, "sliding_window": None,
    }, 12_247_782_400),
    "Qwen2.5 7B": ("qwen2", {
        "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "rope_theta": 1e6, "max_position_embeddings": 32_768,
        "sliding_window": 131_072, "use_sliding_window": False,
    }, 7_615_616_512),
    "Qwen3 8B": ("qwen3", {
        "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 1e6,
        "max_position_embeddings": 40_960,
    }, 8_190_735_360),
    "GLM-4-9B-0414, GLM-Z1-9B-0414": ("glm4", {
        "vocab_size": 151_552, "hidden_size": 4096, "intermediate_size": 13_696, "num_hidden_layers": 40,
        "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "rope_theta": 1e4, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32_768, "attention_bias": True, "partial_rotary_factor": 0.5,
        "rope_scaling": None,
    }, 9_400_279_040),
    "GLM-4-32B-0414, GLM-Z1-32B-0414": ("glm4", {
        "vocab_size": 151_552, "hidden_size": 6144, "intermediate_size": 23_040, "num_hidden_layers": 61,
        "num_attention_heads": 48, "num_key_value_heads": 2, "head_dim": 128, "rope_theta": 1e4, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32_768, "attention_bias": False, "partial_rotary_factor": 0.5,
        "rope_scaling": None,
    }, 32_566_081_536),
}  # fmt: skip
SETTINGS = {model_type: settings for model_type, settings, _ in PUBLISHED.values()}
ADDED = [case for case in tiny.TINIES if "glm" not in case.architecture]


def read(config: PretrainedConfig, shapes: Mapping[str, tuple[int, ...]]) -> ModelSpec:
    """The spec of a checkpoint of which there are only names and shapes."""
    values = json.loads(config.to_json_string())
    checkpoint: Any = SimpleNamespace(
        path=Path("checkpoint"),
        format="safetensors",
        architecture=values["model_type"],
        config=Fields(values, "config.json"),
        shapes=shapes,
        check_readable=lambda _names: None,
    )
    return describe(checkpoint)[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_are_read(name: str) -> None:
    """Every tensor of the model in transformers has its place, and there are as many parameters."""
    model_type, settings, parameters = PUBLISHED[name]
    config_class, model_class = tiny.MODELS[model_type]
    config = config_class(**settings)
    with torch.device("meta"):
        model = model_class(config)
    spec = read(config, {name: tuple(values.shape) for name, values in model.state_dict().items()})
    assert spec.num_parameters == sum(values.numel() for values in model.parameters()) == parameters
    assert (spec.num_layers, spec.hidden_size) == (config.num_hidden_layers, config.hidden_size)
    assert (spec.head_dim, spec.rotary_dim) == (128, 64 if model_type == "glm4" else 128)
    assert spec.output_norms == (model_type == "glm4")
    assert (spec.rope_theta, spec.rms_norm_eps) == (config.rope_theta, config.rms_norm_eps)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
REFUSED = [
    ("llama", "attention_bias", True, "attention_bias is True, supported: False"),
    ("llama", "mlp_bias", True, "mlp_bias is True, supported: False"),
    ("llama", "hidden_act", "gelu", "hidden_act is 'gelu', supported: 'silu'"),
    ("llama", "rope_scaling", LLAMA3, "rope_scaling is .*scaled as 'llama3' are not .* with --frontend optimum"),
    ("llama", "rope_parameters", LLAMA3 | {"rope_theta": 5e5}, "rope_parameters is .*'llama3' are not implemented"),
    ("llama", "rope_scaling", {"type": "linear", "factor": 2.0}, "scaled as 'linear' .* published without it, remove"),
    ("llama", "rope_scaling", {"factor": 2.0}, "scaled as it says are not implemented"),
    ("llama", "rope_scaling", [2.0], "rope_scaling is .*expected none"),
    ("llama", "partial_rotary_factor", 0.5, "partial_rotary_factor is 0.5, supported: 1.0"),
    ("llama", "rope_parameters", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, supported: 1.0"),
    ("glm4", "rope_scaling", {"type": "yarn", "factor": 4.0}, "scaled as 'yarn' .* published without it, remove"),
    ("mistral", "sliding_window", 4096, "sliding_window is 4096, supported: none"),
    ("qwen2", "use_sliding_window", True, "use_sliding_window is True, supported: False"),
    ("qwen3", "use_sliding_window", True, "use_sliding_window is True, supported: False"),
    ("qwen3", "attention_bias", True, "attention_bias is True, supported: False"),
    ("qwen3", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}, "scaled as 'yarn' .* published without it, remove"),
]


@pytest.mark.parametrize(("name", "key", "value", "message"), REFUSED)
def test_what_computes_something_else_is_refused(name: str, key: str, value: object, message: str) -> None:
    values = json.loads(tiny.MODELS[name][0](**SETTINGS[name]).to_json_string())
    stub: Any = SimpleNamespace(config=Fields(values | {key: value}, "config.json"), architecture=name, shapes={})
    with pytest.raises(ConfigError, match=message):
        ARCHITECTURES["safetensors", name].read_spec(stub)


def test_positions_that_are_scaled_by_nothing_are_read() -> None:
    settings = {**SETTINGS["llama"], "rope_scaling": {"rope_type": "default"}}
    values = json.loads(tiny.MODELS["llama"][0](**settings).to_json_string())
    del values["rope_theta"]  # as in configs of Llama 2
    stub: Any = SimpleNamespace(config=Fields(values, "config.json"), architecture="llama", shapes={})
    assert ARCHITECTURES["safetensors", "llama"].read_spec(stub).rope_theta == 10_000


@pytest.fixture(scope="module", params=ADDED, ids=lambda case: case.name)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint in `checkpoint`, its bundle beside it, and the model. Every row of its vocabulary is a token."""
    folder = tmp_path_factory.mktemp(request.param.name)
    model = tiny.make(replace(request.param, vocab_size=256 + len(tiny.SPECIAL)), folder / "checkpoint")
    export(folder / "checkpoint", folder / "bundle", "fp32")
    return folder, model


def test_greedy_ids_are_those_of_transformers(made: tuple[Path, Any], engine: str) -> None:
    """Through tokenizer and chat template, and over steps of one token."""
    folder, model = made
    llm = LLM(folder / "bundle", EXACT[engine])
    ids = llm.tokenizer.encode(llm.render([{"role": "user", "content": "What is the capital of France?"}]))
    with torch.no_grad():
        out = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=24, min_new_tokens=24,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    ours = [i for c in llm.generate(ids, max_new_tokens=24, ignore_stop_ids=True) for i in c.token_ids]
    assert ours == out[0, len(ids) :].tolist()


def test_config_of_a_bundle_is_that_of_its_model(made: tuple[Path, Any]) -> None:
    """As transformers reads it, and as we would."""
    folder, model = made
    config = AutoConfig.from_pretrained(folder / "bundle")
    assert type(config) is type(model.config)
    assert config.architectures == [type(model).__name__]
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "rope_theta", "rms_norm_eps", "vocab_size", "max_position_embeddings", "tie_word_embeddings",
        "attention_bias", "sliding_window", "hidden_act",
    )  # fmt: skip
    for name in names:
        assert getattr(config, name, None) == getattr(model.config, name, None), name
    spec, _ = describe(open_checkpoint(folder / "checkpoint"))
    stub: Any = SimpleNamespace(
        config=Fields(json.loads((folder / "bundle" / "config.json").read_text()), "config.json"),
        architecture=config.model_type,
        shapes={},
    )
    assert ARCHITECTURES["safetensors", config.model_type].read_spec(stub) == spec


def test_rows_are_read_as_they_are_stored(made: tuple[Path, Any]) -> None:
    """Halves are what our graphs have: nothing is reordered, of weights or of what a LoRA adds to them."""
    folder, model = made
    spec, weights = describe(open_checkpoint(folder / "checkpoint"))
    adapter = folder / "adapter"
    save_adapter(model, adapter, r=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"])
    base = {name: values.numpy().copy() for name, values in model.state_dict().items()}
    if not spec.tied_embeddings:  # the helper compares heads too
        assert_merges_as_peft(adapter, spec, type(model).from_pretrained(folder / "checkpoint"))
    change = Adapter(adapter, spec, weights.layout)
    for layer in range(spec.num_layers):
        name = f"layers.{layer}.attn.qkv.weight"
        stored = np.concatenate([base[f"model.layers.{layer}.self_attn.{x}_proj.weight"] for x in "qkv"])
        delta = change.delta(name)
        assert delta is not None
        np.testing.assert_array_equal(weights.read(name), stored)
        np.testing.assert_array_equal(replace(weights, change=change).read(name), stored + delta)


def test_inspect_describes_the_folder(made: tuple[Path, Any], capsys: pytest.CaptureFixture[str]) -> None:
    from edge.cli import main

    folder, model = made
    assert main(["inspect", str(folder / "checkpoint")]) == 0
    said = capsys.readouterr().out
    assert f"{sum(values.numel() for values in model.parameters()):,} parameters" in said
    assert f"architecture             {model.config.model_type}" in said


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_gguf_of_qwen_equals_transformers(name: str, tmp_path: Path) -> None:
    """Tied and not, rows in halves as they are in safetensors."""
    model = tiny.make(next(case for case in ADDED if case.name == name), tmp_path / "hf")
    path = write_plain_gguf(model, tmp_path, name)
    manifest = export(path, tmp_path / "bundle", "fp32")
    assert (manifest.spec.qk_norms, manifest.spec.tied_embeddings) == (name == "qwen3", name == "qwen2")
    ids = list(range(50))
    expected, float32_error = tiny.reference_logits(model, ids)
    for exact in EXACT.values():
        found = logits_in_chunks(LLM(tmp_path / "bundle", exact), ids, [30, 1, 19])
        assert np.abs(found - expected).max() <= TIMES_FLOAT32 * float32_error
    assert type(AutoConfig.from_pretrained(tmp_path / "bundle")) is type(model.config)
    assert not [warning for warning in manifest.warnings if "rotate" in warning]


def test_gguf_and_safetensors_of_a_llama_give_the_same_weights(tmp_path: Path) -> None:
    """Byte by byte: one has q and k in pairs, the other in halves."""
    model = tiny.make(replace(ADDED[0], num_heads=4), tmp_path / "checkpoint")
    write_llama_gguf(model, tmp_path / "llama.gguf")  # and has the model compute with the rounded weights
    model.save_pretrained(tmp_path / "checkpoint")
    one, other = (
        export(tmp_path / source, tmp_path / f"{source}.bundle", DEFAULT, format="openvino")
        for source in ("llama.gguf", "checkpoint")
    )
    assert one.files["openvino_model.bin"] == other.files["openvino_model.bin"]


def test_gguf_with_scaled_positions_is_refused(tmp_path: Path) -> None:
    from tests.fuzz.targets.checkpoint import make_gguf

    def scale(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", np.ones(2, np.float32))

    make_gguf(tmp_path / "llama.gguf", "llama", scale)
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight scales positions, as Llama 3.1 does"):
        describe(open_checkpoint(tmp_path / "llama.gguf"))


def test_old_llama_has_frequencies_in_every_layer(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny.make(ADDED[0], tmp_path)
    spec = describe(open_checkpoint(tmp_path))[0]
    more = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(3)}
    save_file(load_file(tmp_path / "model.safetensors") | more, tmp_path / "model.safetensors")
    assert describe(open_checkpoint(tmp_path))[0] == spec


def test_mistral_is_a_llama(tmp_path: Path) -> None:
    case = tiny.Tiny("mistral", architecture="mistral", partial_rotary=1.0, bias=False)
    model = tiny.make(case, tmp_path / "checkpoint", sliding_window=None)
    export(tmp_path / "checkpoint", tmp_path / "bundle", "fp32", format="openvino")
    ids = list(range(40))
    expected, float32_error = tiny.reference_logits(model, ids)
    found = logits_in_chunks(LLM(tmp_path / "bundle", EXACT["openvino"]), ids, [30, 10])
    assert np.abs(found - expected).max() <= TIMES_FLOAT32 * float32_error
    assert type(AutoConfig.from_pretrained(tmp_path / "bundle")) is type(model.config)
