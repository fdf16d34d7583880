"""An adapter's changes are those that PEFT merges, and an adapter that does not fit is refused by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import GlmForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from edge.export.architectures.architecture import GLM_LAYOUT
from edge.export.architectures.registry import describe
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.export.weights.adapter import Adapter
from edge.export.weights.names import Layout, canonical_shapes
from edge.runtime.errors import CheckpointError, ConfigError, TensorError
from edge.runtime.spec import ModelSpec
from tests.export.test_reference import write_llama_gguf

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
PREFIX = "base_model.model."
EPS = float(np.finfo(np.float32).eps)
Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]


@pytest.fixture(scope="session")
def spec(tiny_checkpoint: Path) -> ModelSpec:
    return describe(open_checkpoint(tiny_checkpoint))[0]


@pytest.fixture
def model(tiny_checkpoint: Path) -> GlmForCausalLM:
    return GlmForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)


@pytest.fixture(scope="session")
def plain(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of every linear layer of the tiny checkpoint."""
    folder = tmp_path_factory.mktemp("adapter") / "plain"
    save_adapter(GlmForCausalLM.from_pretrained(tiny_checkpoint), folder, r=4, lora_alpha=8, target_modules=ALL)
    return folder


@pytest.fixture
def adapter(plain: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(plain, tmp_path / "adapter"))


def save_adapter(model: PreTrainedModel, folder: Path, **settings: Any) -> None:
    """Write an adapter with random A and B, as PEFT does."""
    torch.manual_seed(11)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers` to `True`")  # a LoRA of the head
        adapted = get_peft_model(model, LoraConfig(**settings))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, 0.0, 0.3)
        adapted.save_pretrained(folder)
    adapted.unload()


def edit_config(folder: Path, change: Callable[[Config], object]) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    change(config)
    (folder / "adapter_config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def canonical(weights: Mapping[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """The weights of transformers that a LoRA can change, by canonical name and in the checkpoint's row order."""
    joined = {"lm_head.weight": weights["lm_head.weight"]}
    for layer in range(layers):
        theirs = f"model.layers.{layer}"
        fused = f"{theirs}.mlp.gate_up_proj.weight" in weights
        parts = {
            "attn.qkv": [f"self_attn.{x}_proj" for x in "qkv"],
            "attn.o": ["self_attn.o_proj"],
            "mlp.gate_up": ["mlp.gate_up_proj"] if fused else ["mlp.gate_proj", "mlp.up_proj"],
            "mlp.down": ["mlp.down_proj"],
        }
        for ours, names in parts.items():
            joined[f"layers.{layer}.{ours}.weight"] = np.concatenate([weights[f"{theirs}.{x}.weight"] for x in names])
    return joined


def rounding(a: np.ndarray, b: np.ndarray, scaling: float) -> np.ndarray:
    """How far scaling * B @ A in float32 may be off, element by element.

    Each term of a dot product of r terms is rounded r times at most (one product, r - 1 sums), scaling and its own
    representation add two, and one more covers the products of these errors (Higham, Accuracy and Stability, 3.1).
    """
    bound: np.ndarray = (len(a) + 3) * EPS / 2 * abs(scaling) * (np.abs(b).astype(np.float64) @ np.abs(a))
    return bound


def assert_merges_as_peft(
    folder: Path,
    spec: ModelSpec,
    model: PreTrainedModel,
) -> Adapter:
    """base + our delta is what PEFT reads from the same files and merges."""

    def joined(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return canonical(weights, spec.num_layers)

    base = {name: values.detach().clone().numpy() for name, values in model.state_dict().items()}
    adapted = PeftModel.from_pretrained(model, folder)
    errors = {name: np.zeros(values.shape) for name, values in base.items()}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            a, b = (x["default"].weight.detach().numpy() for x in (layer.lora_A, layer.lora_B))
            errors[f"{name}.weight"] = rounding(a, b, layer.scaling["default"])
    merged = {name: values.detach().numpy() for name, values in adapted.merge_and_unload().state_dict().items()}
    weights, expected, allowed = joined(base), joined(merged), joined(errors)

    adapter = Adapter(folder, spec, GLM_LAYOUT)
    for name in expected:
        delta = adapter.delta(name)
        if delta is None:
            np.testing.assert_array_equal(expected[name], weights[name], err_msg=f"{name} is changed by PEFT only")
            continue
        assert delta.dtype == np.float32
        assert delta.shape == canonical_shapes(spec)[name]
        assert np.abs(expected[name] - weights[name]).max() > 0.1, f"{name}: PEFT changed nothing"
        # Both sides round the change, and then the sum by half an eps.
        bound = 2 * allowed[name] + EPS * np.abs(expected[name])
        assert (np.abs(weights[name] + delta - expected[name].astype(np.float64)) <= bound).all(), name
    assert adapter.touched == tuple(name for name in canonical_shapes(spec) if adapter.delta(name) is not None)
    return adapter


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"lora_alpha": 3, "r": 5},
        {"rank_pattern": {"down_proj": 7, "layers.1.self_attn.q_proj": 2}},
        {"alpha_pattern": {"down_proj": 1, r"^model\.layers\.[02]\..*_proj": 32}},
        # The first match counts, in the order of the file, which PEFT sorts. A pattern ends where the name ends and
        # begins at a dot, so "proj" matches nothing.
        {"rank_pattern": {r"layers\.1\..*": 3, "proj": 11, "q_proj": 9}, "alpha_pattern": {"k_proj|v_proj": 5}},
        {"rank_pattern": {"o_proj": 16}, "alpha_pattern": {"k_proj": 2}, "use_rslora": True},
    ],
    ids=["plain", "rslora", "odd", "ranks", "alphas", "first match", "rslora and patterns"],
)
def test_equals_merge_by_peft(settings: dict[str, Any], spec: ModelSpec, model: GlmForCausalLM, tmp_path: Path) -> None:
    save_adapter(model, tmp_path / "a", **{"r": 4, "lora_alpha": 8, "target_modules": ALL} | settings)
    adapter = assert_merges_as_peft(tmp_path / "a", spec, model)
    assert len(adapter.touched) == 4 * spec.num_layers
    assert adapter.files == [tmp_path / "a/adapter_config.json", tmp_path / "a/adapter_model.safetensors"]


def test_untouched_weights_have_no_change(spec: ModelSpec, model: GlmForCausalLM, tmp_path: Path) -> None:
    save_adapter(model, tmp_path / "a", r=4, target_modules=["k_proj", "down_proj"], layers_to_transform=[1])
    adapter = assert_merges_as_peft(tmp_path / "a", spec, model)
    assert adapter.touched == ("layers.1.attn.qkv.weight", "layers.1.mlp.down.weight")
    delta = adapter.delta("layers.1.attn.qkv.weight")
    assert delta is not None
    keys = slice(spec.q_size, spec.q_size + spec.kv_size)
    assert delta[keys].all()
    assert not np.delete(delta, keys, axis=0).any(), "rows of q and v are not k's"


def test_head_equals_merge_by_peft(spec: ModelSpec, model: GlmForCausalLM, tmp_path: Path) -> None:
    """PEFT stores the head itself beside its LoRA."""
    save_adapter(model, tmp_path / "a", r=4, target_modules=["lm_head"])
    assert f"{PREFIX}lm_head.base_layer.weight" in load_file(tmp_path / "a/adapter_model.safetensors")
    assert assert_merges_as_peft(tmp_path / "a", spec, model).touched == ("lm_head.weight",)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_exactly(
    dtype: torch.dtype, spec: ModelSpec, model: GlmForCausalLM, adapter: Path
) -> None:
    edit_tensors(adapter, lambda tensors: tensors.update({name: t.to(dtype) for name, t in tensors.items()}))
    assert_merges_as_peft(adapter, spec, model)


def test_adapter_name_in_keys_changes_nothing(spec: ModelSpec, plain: Path, adapter: Path) -> None:
    rename(adapter, lambda name: re.sub(r"lora_([AB])", r"lora_\1.default", name))
    with_name, without = Adapter(adapter, spec, GLM_LAYOUT), Adapter(plain, spec, GLM_LAYOUT)
    assert with_name.touched == without.touched
    for name in without.touched:
        np.testing.assert_array_equal(with_name.delta(name), without.delta(name))


def test_gate_and_up_apart_equal_both_at_once(spec: ModelSpec, plain: Path, adapter: Path) -> None:
    def split(tensors: Tensors) -> None:
        for name in [name for name in tensors if "gate_up_proj" in name]:
            both = tensors.pop(name)
            gate, up = both.chunk(2) if "lora_B" in name else (both, both)
            tensors[name.replace("gate_up_proj", "gate_proj")] = gate.clone()
            tensors[name.replace("gate_up_proj", "up_proj")] = up.clone()

    edit_tensors(adapter, split)
    apart, fused = Adapter(adapter, spec, GLM_LAYOUT), Adapter(plain, spec, GLM_LAYOUT)
    tensors = load_file(plain / "adapter_model.safetensors")
    for layer in range(spec.num_layers):
        a, b = (tensors[f"{PREFIX}model.layers.{layer}.mlp.gate_up_proj.lora_{x}.weight"].numpy() for x in "AB")
        ours, expected = (x.delta(f"layers.{layer}.mlp.gate_up.weight") for x in (apart, fused))
        assert ours is not None
        assert expected is not None
        assert (np.abs(ours.astype(np.float64) - expected) <= 2 * rounding(a, b, 2.0)).all()


def test_remote_code_layout(spec: ModelSpec, tmp_path: Path) -> None:
    """The fused modules of GLM-4's remote code, each with an A and a B of its own; patterns go by its names."""
    h, f, qkv = spec.hidden_size, spec.intermediate_size, spec.q_size + 2 * spec.kv_size
    modules = {
        "self_attention.query_key_value": ("attn.qkv", qkv, h, 3, 8),
        "self_attention.dense": ("attn.o", h, spec.q_size, 6, 8),
        "mlp.dense_h_to_4h": ("mlp.gate_up", 2 * f, h, 6, 5),
        "mlp.dense_4h_to_h": ("mlp.down", h, f, 6, 8),
    }
    generator = torch.Generator().manual_seed(13)
    tensors: Tensors = {}
    for layer in range(spec.num_layers):
        for module, (_, rows, columns, rank, _) in modules.items():
            stem = f"{PREFIX}transformer.encoder.layers.{layer}.{module}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    head = f"{PREFIX}transformer.output_layer"
    tensors[f"{head}.lora_A.weight"] = torch.randn(6, h, generator=generator)
    tensors[f"{head}.lora_B.weight"] = torch.randn(spec.vocab_size, 6, generator=generator)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 6, "lora_alpha": 8}
    config |= {"rank_pattern": {"query_key_value": 3}, "alpha_pattern": {"mlp.dense_h_to_4h": 5}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))

    adapter = Adapter(tmp_path, spec, GLM_LAYOUT)
    assert len(adapter.touched) == 4 * spec.num_layers + 1
    cases = {
        f"layers.{layer}.{ours}.weight": (f"{PREFIX}transformer.encoder.layers.{layer}.{module}", alpha / rank)
        for layer in range(spec.num_layers)
        for module, (ours, _, _, rank, alpha) in modules.items()
    }
    for name, (stem, scaling) in (cases | {"lm_head.weight": (head, 8 / 6)}).items():
        a, b = (tensors[f"{stem}.lora_{x}.weight"].numpy() for x in "AB")
        delta = adapter.delta(name)
        assert delta is not None
        exact = scaling * (b.astype(np.float64) @ a)
        assert (np.abs(delta - exact) <= rounding(a, b, scaling)).all(), name


def test_fused_and_split_attention_agree(spec: ModelSpec, plain: Path, adapter: Path) -> None:
    """Three LoRAs of q, k and v are one of query_key_value, whose B is block diagonal: rows are q, then k, then v."""

    def fuse(tensors: Tensors) -> None:
        split = dict(tensors)
        tensors.clear()
        for layer in range(spec.num_layers):
            stems = [f"{PREFIX}model.layers.{layer}.self_attn.{x}_proj" for x in "qkv"]
            fused = f"{PREFIX}transformer.encoder.layers.{layer}.self_attention.query_key_value"
            tensors[f"{fused}.lora_A.weight"] = torch.cat([split[f"{stem}.lora_A.weight"] for stem in stems])
            tensors[f"{fused}.lora_B.weight"] = torch.block_diag(*(split[f"{stem}.lora_B.weight"] for stem in stems))

    edit_tensors(adapter, fuse)
    edit_config(adapter, lambda c: c.update(r=12, lora_alpha=24))
    fused, split = Adapter(adapter, spec, GLM_LAYOUT), Adapter(plain, spec, GLM_LAYOUT)
    tensors = load_file(adapter / "adapter_model.safetensors")
    for layer in range(spec.num_layers):
        stem = f"{PREFIX}transformer.encoder.layers.{layer}.self_attention.query_key_value"
        a, b = (tensors[f"{stem}.lora_{x}.weight"].numpy() for x in "AB")
        ours, expected = (x.delta(f"layers.{layer}.attn.qkv.weight") for x in (fused, split))
        assert ours is not None
        assert expected is not None
        assert (np.abs(ours.astype(np.float64) - expected) <= 2 * rounding(a, b, 2.0)).all()


def test_rows_of_a_gguf_and_of_an_adapter_for_it(tmp_path: Path) -> None:
    """llama.cpp stores q and k of llama in pairs; adapters have them as transformers does, in halves."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    write_llama_gguf(model, tmp_path / "llama.gguf")  # and has the model compute with the rounded weights
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    save_adapter(model, tmp_path / "a", r=4, target_modules=modules)
    spec, weights = describe(open_checkpoint(tmp_path / "llama.gguf"))
    stored = canonical({name: values.numpy().copy() for name, values in model.state_dict().items()}, spec.num_layers)
    adapter = assert_merges_as_peft(tmp_path / "a", spec, model)
    assert len(adapter.touched) == 4 * spec.num_layers
    merged = replace(weights, change=adapter)
    for name, base in stored.items():
        np.testing.assert_array_equal(weights.read(name), base)  # halves, as transformers has them
        delta = adapter.delta(name)
        np.testing.assert_array_equal(merged.read(name), base if delta is None else base + delta)


def rename(folder: Path, new: Callable[[str], str]) -> None:
    def change(tensors: Tensors) -> None:
        renamed = {new(name): values for name, values in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    edit_tensors(folder, change)


def refuse(folder: Path, spec: ModelSpec, error: type[Exception], message: str, layout: Layout = GLM_LAYOUT) -> None:
    with pytest.raises(error, match=message) as caught:
        Adapter(folder, spec, layout)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"peft_type": None}, "peft_type is missing"),
        ({"use_dora": True}, "use_dora is True, expected a plain LoRA, and here DoRA"),
        ({"bias": "lora_only"}, "bias is 'lora_only', expected 'none'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"init_lora_weights": "pissa_niter_16"}, "'pissa_niter_16', which changes the base weights"),
        ({"init_lora_weights": "olora"}, "'olora', which changes the base weights"),
        ({"r": 0}, "r is 0, expected 1 or more"),
        ({"r": "4"}, "r is '4', expected a whole number"),
        ({"lora_alpha": None}, "lora_alpha is missing"),
        ({"lora_alpha": float("inf")}, "not valid JSON: it holds Infinity"),
        ({"lora_alpha": 10**300}, "not valid JSON: it holds an integer of 301 digits"),
        ({"bias": "\x1b[2J" + "a" * 1000}, r"bias is '\\x1b\[2Ja*…, expected 'none'"),
        ({"peft_type": "\ud83d"}, "half a character"),
        ({"rank_pattern": [[]] * 10_000}, r"rank_pattern is \[\[\], .*…, expected an object"),
        ({"rank_pattern": {f"q{i}": 1 for i in range(6000)}}, "6,000 names and 0 patterns of modules"),
        ({"rank_pattern": {"q.*" + "?:"[i % 2] + str(i): 1 for i in range(200)}}, "0 names and 200 patterns"),
        (
            {"rank_pattern": {"(?=a)b": 1}},
            r"'\(\?=a\)b' is not a regular expression that can be used: .* not supported",
        ),
        ({"alpha_pattern": {"((a{999}){999}){999}": 1}}, "repeats written out"),
        ({"rank_pattern": ["q_proj"]}, r"rank_pattern is \['q_proj'\], expected an object"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern: q_proj is 0, expected 1 or more"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern: '\(' is not a regular expression"),
    ],
)
def test_settings_that_are_no_plain_lora(change: Config, message: str, adapter: Path, spec: ModelSpec) -> None:
    edit_config(adapter, lambda c: c.update(change))
    refuse(adapter, spec, ConfigError, message)


@pytest.mark.parametrize("pattern", ["(.*)*x", "(a+)+$", "(a|a)*b", "(.*.*.*.*)*x", "(.*,){11}x", "([a-z_.]+)+[0-9]q"])
def test_a_pattern_of_a_stranger_takes_no_time(pattern: str, adapter: Path, spec: ModelSpec) -> None:
    edit_config(adapter, lambda c: c.update(rank_pattern={pattern: 3}, alpha_pattern={pattern: 3}))
    began = time.monotonic()
    assert Adapter(adapter, spec, GLM_LAYOUT).touched  # none of them matches a module
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"r": ',
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[]",
        b"5",
        b"null",
        b"\0",
        b"{}",
        '"x"'.encode("utf-16"),
    ],
)
def test_a_config_that_is_none(content: bytes, adapter: Path, spec: ModelSpec) -> None:
    (adapter / "adapter_config.json").write_bytes(content)
    refuse(adapter, spec, ConfigError, "not valid JSON|expected a JSON object|is missing")


def test_what_is_no_adapter(adapter: Path, spec: ModelSpec) -> None:
    for name in ("x" * 300, "d/" * 3000, "a\x1b[2J"):
        refuse(Path(name), spec, CheckpointError, "not an adapter")
    config = adapter / "adapter_config.json"
    config.unlink()
    makes: list[Callable[[], object]] = [lambda: os.mkfifo(config), lambda: config.symlink_to(config), config.mkdir]
    for make in makes:
        make()
        refuse(adapter, spec, CheckpointError, "not an adapter")
        config.rmdir() if config.is_dir() else config.unlink()
    config.symlink_to("/dev/zero")
    refuse(adapter, spec, CheckpointError, "not an adapter")


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "eva"])
def test_starts_that_leave_the_base_alone(start: object, adapter: Path, spec: ModelSpec) -> None:
    edit_config(adapter, lambda c: c.update(init_lora_weights=start))
    assert Adapter(adapter, spec, GLM_LAYOUT).touched


LAYER = f"{PREFIX}model.layers.1"
QUERY = f"{LAYER}.self_attn.q_proj"


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{QUERY}.lora_B.weight"), r"q_proj has lora_A and no lora_B; the adapter is incomplete"),
        (lambda t: t.pop(f"{QUERY}.lora_A.weight"), r"q_proj has lora_B and no lora_A"),
        (
            lambda t: t.update({f"{QUERY}.lora_A.weight": zeros(4, 48)}),
            r"layers\.1\.self_attn\.q_proj\.lora_A\.weight is \[4, 48\], expected \[4, 64\] from rank 4",
        ),
        (lambda t: t.update({f"{QUERY}.lora_B.weight": zeros(96, 4)}), r"is \[96, 4\], expected \[128, 4\]"),
        (lambda t: t.update({f"{QUERY}.lora_A.weight": zeros(8, 64)}), r"is \[8, 64\], expected \[4, 64\]"),
        (lambda t: t.update({f"{QUERY}.lora_A.weight": zeros(256)}), r"is \[256\], expected \[4, 64\]"),
        (
            lambda t: t.update({f"{PREFIX}model.layers.3.mlp.down_proj.lora_A.weight": zeros(4, 128)}),
            r"down_proj\.lora_A\.weight is of layer 3, the model has 0 to 2; this is an adapter for another model",
        ),
        (
            lambda t: t.update({f"{LAYER}.self_attn.c_attn.lora_A.weight": zeros(4, 64)}),
            r"c_attn\.lora_A\.weight maps to nothing in this model, .* an adapter for another model",
        ),
        (
            lambda t: t.update({f"{LAYER}.x{i}.lora_A.weight": zeros(4, 64) for i in range(5)}),
            r"5 tensors \(.*x0.*x1.*x2\.lora_A\.weight, \.\.\.\) map to nothing",
        ),
        (lambda t: t.update({f"{QUERY}.lora_B.bias": zeros(128)}), r"lora_B\.bias maps to nothing"),
        (lambda t: t.update({f"{PREFIX}lm_head.weight": zeros(320, 64)}), r"lm_head\.weight maps to nothing"),
        (lambda t: t.update({f"{PREFIX}lm_head.base_layer.weight": zeros(320, 64)}), "maps to nothing"),
        (lambda t: t.update({f"{QUERY}.lora_magnitude_vector": zeros(128)}), "lora_magnitude_vector is of DoRA"),
        (
            lambda t: t.update({f"{PREFIX}model.embed_tokens.lora_embedding_A": zeros(4, 320)}),
            "lora_embedding_A changes the embedding, expected linear layers only; merge it",
        ),
        (
            lambda t: t.update({f"{QUERY}.lora_A.default.weight": zeros(4, 64)}),
            r"lora_A\.default\.weight and .*lora_A\.weight are the same tensor",
        ),
        (
            lambda t: t.update(
                {
                    f"{PREFIX}transformer.encoder.layers.1.self_attention.query_key_value.lora_A.weight": zeros(4, 64),
                    f"{PREFIX}transformer.encoder.layers.1.self_attention.query_key_value.lora_B.weight": zeros(192, 4),
                }
            ),
            r"q_proj and .*query_key_value both change layers\.1\.attn\.qkv\.weight|query_key_value and .*q_proj both",
        ),
        (
            lambda t: t.update(
                {
                    f"{LAYER}.mlp.up_proj.lora_A.weight": zeros(4, 64),
                    f"{LAYER}.mlp.up_proj.lora_B.weight": zeros(128, 4),
                }
            ),
            r"gate_up_proj and .*up_proj both change layers\.1\.mlp\.gate_up\.weight",
        ),
        (lambda t: t.clear(), "holds no lora_A and lora_B"),
    ],
)
def test_tensors_that_do_not_fit(
    change: Callable[[Tensors], object], message: str, adapter: Path, spec: ModelSpec
) -> None:
    edit_tensors(adapter, change)
    refuse(adapter, spec, TensorError, message)


def test_adapter_of_a_larger_model(adapter: Path, spec: ModelSpec) -> None:
    refuse(adapter, replace(spec, intermediate_size=64), TensorError, r"\[4, 128\], expected \[4, 64\]")
    refuse(adapter, replace(spec, num_layers=2), TensorError, "is of layer 2, the model has 0 to 1")


def test_remote_code_layout_is_none_of_llama(adapter: Path, spec: ModelSpec) -> None:
    rename(
        adapter,
        lambda name: name.replace(
            "model.layers.1.self_attn.o_proj", "transformer.encoder.layers.1.self_attention.dense"
        ),
    )
    assert Adapter(adapter, spec, GLM_LAYOUT).touched
    refuse(adapter, spec, TensorError, r"self_attention\.dense.* map to nothing", Layout("halves", "halves"))


def test_head_that_is_the_embedding(spec: ModelSpec, model: GlmForCausalLM, tmp_path: Path) -> None:
    save_adapter(model, tmp_path / "a", r=4, target_modules=["lm_head"])
    tied = replace(spec, tied_embeddings=True)
    refuse(tmp_path / "a", tied, TensorError, "an output layer that this model shares with its embedding")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize("factor", "AB")
def test_damaged_values_are_found_when_read(value: float, factor: str, adapter: Path, spec: ModelSpec) -> None:
    name = f"{QUERY}.lora_{factor}.weight"
    edit_tensors(adapter, lambda t: t[name].view(-1)[5:6].fill_(value))
    if value == 1e38:
        edit_tensors(adapter, lambda t: t[f"{QUERY}.lora_{'BA'['AB'.index(factor)]}.weight"].fill_(100))
    opened = Adapter(adapter, spec, GLM_LAYOUT)
    assert opened.delta("layers.1.mlp.down.weight") is not None
    expected = r"q_proj may reach 8\.0e\+40" if value == 1e38 else rf"lora_{factor}\.weight holds NaN or infinity"
    with pytest.raises(TensorError, match=expected):
        opened.delta("layers.1.attn.qkv.weight")


def test_pickled_adapter(adapter: Path, spec: ModelSpec) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refuse(adapter, spec, CheckpointError, r"pickled \(adapter_model\.bin\), and unpickling can run code")


def test_missing_files(adapter: Path, spec: ModelSpec, tiny_checkpoint: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    refuse(adapter, spec, CheckpointError, r"no adapter_model\.safetensors")
    refuse(tiny_checkpoint, spec, CheckpointError, r"not an adapter; expected a folder with adapter_config\.json")
    refuse(adapter / "nothing", spec, CheckpointError, "not an adapter")


@pytest.mark.parametrize("keep", [4, 60, 20_000])
def test_truncated_file(keep: int, adapter: Path, spec: ModelSpec) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refuse(adapter, spec, TensorError, "truncated")
