"""Synthetic checkpoints: the published shapes, files that transformers opens, and weights that are all different."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from make_checkpoint import INDEX, split, with_layers, write_checkpoint
from members import LAYOUTS, MEMBERS, Config
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Glm4Config,
    Glm4ForCausalLM,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    GlmConfig,
    GlmForCausalLM,
)

CLASSES = {
    "glm": (GlmConfig, GlmForCausalLM),
    "glm4": (Glm4Config, Glm4ForCausalLM),
    "glm4v": (Glm4vConfig, Glm4vForConditionalGeneration),
}

# As published: zai-org/GLM-4#500 for the vision model; the others are sums over the shapes, 18.8 GB on disk among them.
PARAMETERS = {
    "glm-4-9b": 9_399_951_360,
    "glm-4-9b-chat": 9_399_951_360,
    "glm-4-9b-chat-1m": 9_483_857_920,
    "glm-4v-9b": 13_906_320_896,
    "glm-4-9b-hf": 9_399_951_360,
    "glm-4-9b-chat-hf": 9_399_951_360,
    "glm-4-9b-chat-1m-hf": 9_483_857_920,
    "GLM-4-9B-0414": 9_399_951_360 + 40 * 2 * 4096,  # two more norms a layer
    "GLM-4.1V-9B-Thinking": 9_399_951_360 + 40 * 2 * 4096 + 892_498_432,
}

# Whose published config.json is in the shared data.
SEEN = (
    "glm-4-9b",
    "glm-4-9b-chat",
    "glm-4-9b-chat-1m",
    "glm-4v-9b",
    "glm-4-9b-hf",
    "glm-4-9b-chat-hf",
    "glm-edge-1.5b-chat",
)

# Small in every dimension that costs memory; no two sizes are equal, so that mistaken shapes show.
SMALL_CHATGLM = {
    "hidden_size": 48,
    "ffn_hidden_size": 80,
    "num_attention_heads": 4,
    "kv_channels": 16,
    "padded_vocab_size": 288,
}
SMALL_GLM = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 288,
}
SMALL_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_positions": 17}
SMALL_TOWER = {"hidden_size": 32, "intermediate_size": 64, "image_size": 56, "num_heads": 2, "out_hidden_size": 48}


def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
    return dict(LAYOUTS[config["model_type"]].tensors(config))


def parameters_of(config: Config, prefix: str = "") -> int:
    shapes = {name: shape for name, shape in shapes_of(config).items() if not name.endswith("inv_freq")}
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix))


def small(member: str) -> Config:
    config = dict(MEMBERS[member])
    if config["model_type"] == "glm4v":
        config["text_config"] = config["text_config"] | SMALL_GLM
        config["vision_config"] = config["vision_config"] | SMALL_TOWER
        return with_layers(config, 2)
    config |= SMALL_CHATGLM if config["model_type"] == "chatglm" else SMALL_GLM
    if "vision_config" in config:
        config["vision_config"] = config["vision_config"] | SMALL_VISION
    return with_layers(config, 2)


def read(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    return tensors


@pytest.mark.parametrize("member", PARAMETERS)
def test_totals_are_the_published_ones(member: str) -> None:
    assert parameters_of(MEMBERS[member]) == PARAMETERS[member]


def test_parts_of_the_vision_model_are_the_published_ones() -> None:
    config = MEMBERS["glm-4v-9b"]
    assert parameters_of(config, "transformer.encoder.layers.") == 8_158_433_280
    assert parameters_of(config, "transformer.vision.transformer.") == 4_279_387_392
    assert PARAMETERS["glm-4v-9b"] - parameters_of(config, "transformer.vision.") == PARAMETERS["glm-4-9b"]


def test_shards_are_cut_where_the_published_ones_are() -> None:
    def gigabytes(member: str) -> list[float]:
        layout = LAYOUTS[MEMBERS[member]["model_type"]]
        files = split(shapes_of(MEMBERS[member]), 2, layout.shard_bytes)
        return [round(2 * sum(map(math.prod, shapes.values())) / 1e9, 2) for shapes in files.values()]

    assert gigabytes("glm-4-9b-chat-hf") == [4.98, 4.9, 4.9, 4.03]
    remote = gigabytes("glm-4-9b-chat")
    assert (len(remote), min(remote), max(remote)) == (10, 1.65, 1.97)


@pytest.mark.parametrize("member", [name for name, config in MEMBERS.items() if config["model_type"] in CLASSES])
def test_names_shapes_and_order_are_those_of_transformers(member: str) -> None:
    config_class, model_class = CLASSES[MEMBERS[member]["model_type"]]
    config = with_layers(MEMBERS[member], 2)
    with torch.device("meta"):
        model = model_class(config_class(**config))
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    expected = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items() if name not in tied]
    assert list(shapes_of(config).items()) == expected


@pytest.mark.parametrize("member", SEEN)
def test_configs_are_the_published_ones(member: str, shared: Path) -> None:
    published = json.loads((shared / "configs" / f"{member}.json").read_text())
    published.pop("auto_map", None)
    assert MEMBERS[member] == published


def test_fewer_layers_under_every_key() -> None:
    config = with_layers(MEMBERS["glm-4-9b-chat"], 3)
    assert (config["num_layers"], config["num_hidden_layers"]) == (3, 3)
    vision = with_layers(MEMBERS["glm-4v-9b"], 50)
    assert (vision["num_layers"], vision["vision_config"]["num_hidden_layers"]) == (40, 50)
    assert "num_hidden_layers" not in vision


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_files_hold_what_the_layout_says(member: str, dtype: str, tmp_path: Path) -> None:
    config = {**small(member), "torch_dtype": dtype}
    folder = tmp_path / "checkpoint"
    size = write_checkpoint(folder, config, shard_bytes=40_000)
    tensors = read(folder)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes_of(config)
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"]["total_size"] == size == sum(tensor.nbytes for tensor in tensors.values())
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, "pt") as shard:
            assert name in shard.keys()  # noqa: SIM118  # not a dict


@pytest.mark.parametrize("member", ["glm-4-9b-hf", "glm-edge-1.5b-chat", "GLM-4-9B-0414", "GLM-4-32B-0414"])
def test_transformers_opens_model_and_tokenizer(member: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, small(member), shard_bytes=40_000)
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stops = [tokenizer.convert_tokens_to_ids(text) for text in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    assert stops == model.config.eos_token_id
    assert tokenizer.pad_token_id == model.config.pad_token_id
    assert tokenizer.decode(tokenizer.encode("héllo 你好")) == "héllo 你好"


def test_no_two_rows_are_equal(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, small("glm-4v-9b"))
    rows = [
        row.view(torch.uint16).numpy().tobytes()
        for tensor in read(folder).values()
        for row in (tensor.flatten(1) if tensor.ndim > 1 else tensor[None])
    ]
    assert len(set(rows)) == len(rows)


def test_weights_are_normal(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, {**small("glm-4v-9b"), "torch_dtype": "float32"})
    tensors = {name: tensor for name, tensor in read(folder).items() if not name.endswith("inv_freq")}
    is_norm = {name: "norm" in name and name.endswith(".weight") for name in tensors}
    norms = torch.cat([tensor.flatten() for name, tensor in tensors.items() if is_norm[name]]) - 1
    others = torch.cat([tensor.flatten() for name, tensor in tensors.items() if not is_norm[name]])
    for values in (norms, others):
        scaled = values / 0.02
        # The k-th moment of n normal values has the variance (m_2k - m_k^2) / n; 6 deviations for each.
        for moment, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            assert abs((scaled**moment).mean() - expected) < 6 * math.sqrt(variance / values.numel())


def test_a_seed_and_a_name_decide_the_weights(tmp_path: Path) -> None:
    config = small("glm-4-9b-chat-hf")
    write_checkpoint(tmp_path / "a", config, seed=1)
    write_checkpoint(tmp_path / "b", with_layers(config, 1), seed=1, shard_bytes=40_000)
    write_checkpoint(tmp_path / "c", config, seed=2)
    first, fewer, other = (read(tmp_path / name) for name in "abc")
    assert all(torch.equal(first[name], tensor) for name, tensor in fewer.items())
    assert not any(torch.equal(first[name], tensor) for name, tensor in other.items())


def test_remote_code_keeps_its_rotary_buffer(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", {**small("glm-4-9b-chat"), "torch_dtype": "float32"})
    stored = read(tmp_path / "checkpoint")["transformer.rotary_pos_emb.inv_freq"]
    assert torch.equal(stored, (10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)).float())


def test_a_folder_in_the_way_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        write_checkpoint(tmp_path, small("glm-4-9b-hf"))
    assert not list(tmp_path.iterdir())


def test_every_id_can_have_a_name(tmp_path: Path) -> None:
    for names in (False, True):
        folder = tmp_path / str(names)
        config = small("glm-4-9b-chat-hf")
        write_checkpoint(folder, {**config, "torch_dtype": "float32"}, names=names)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.encode("caf\u00e9 1") == [tokenizer.convert_tokens_to_ids(c) for c in "caf\u00c3\u00a9\u01201"]
        assert tokenizer.eos_token_id == 256
        named = [i for i in range(259, config["vocab_size"]) if tokenizer.decode([i]) == f"<{i}>"]
        assert len(named) == (config["vocab_size"] - 259 if names else 0)
