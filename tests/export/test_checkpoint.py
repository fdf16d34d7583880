"""Damaged and unsupported checkpoints give one error that names the thing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edge.export.architectures.doubts import doubts
from edge.export.architectures.registry import describe
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.export.checkpoint.safetensors import SafetensorsFiles
from edge.export.pipeline import export
from edge.export.plan import make_plan
from edge.export.settings import ExportSettings
from edge.export.tensors import FloatArray
from edge.export.weights.source import ReadWhenNeeded, rotary_halves
from edge.runtime.errors import CheckpointError, ConfigError, TensorError
from edge.runtime.spec import ModelSpec


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def edit_config(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_header(folder: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> None:
    """Change the safetensors header in place, keeping its length."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write the weights anew."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such path"):
        open_checkpoint(tmp_path / "nothing")


def test_folder_without_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint; expected"):
        open_checkpoint(tmp_path)


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        open_checkpoint(tmp_path / "x.gguf")


def test_named_tokens_of_gguf(demo_gguf: Path) -> None:
    """Its metadata have ids; templates want texts."""
    tokens = dict.fromkeys(("eos_token", "pad_token"), "<|im_end|>")
    tokens |= {"bos_token": "<|im_start|>", "unk_token": "<|endoftext|>"}
    assert open_checkpoint(demo_gguf).named_tokens() == tokens


def test_truncated_gguf(demo_gguf: Path, tmp_path: Path) -> None:
    with demo_gguf.open("rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(4_000_000))
    with pytest.raises(CheckpointError, match=r"cut\.gguf: truncated or damaged"):
        open_checkpoint(tmp_path / "cut.gguf")


@pytest.mark.parametrize("keep", [4, 60, 200_000])
def test_truncated_safetensors(checkpoint: Path, keep: int) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TensorError, match="truncated"):
        open_checkpoint(checkpoint)


def test_offsets_outside_the_file(checkpoint: Path) -> None:
    edit_header(checkpoint, lambda h: h["model.norm.weight"].update(data_offsets=[10**9, 10**9 + 256]))
    with pytest.raises(TensorError, match=r"model\.norm\.weight is at bytes"):
        open_checkpoint(checkpoint)


def test_offsets_that_do_not_fit_the_shape(checkpoint: Path) -> None:
    edit_header(checkpoint, lambda h: h["model.norm.weight"].update(shape=[65]))
    with pytest.raises(TensorError, match=r"model\.norm\.weight of shape \[65\] needs 260 bytes but has 256"):
        open_checkpoint(checkpoint)


def test_header_that_is_no_json(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes((16).to_bytes(8, "little") + b"not json at all!" + b"\0" * 64)
    with pytest.raises(TensorError, match=r"the header of .* is not valid JSON"):
        open_checkpoint(checkpoint)


def test_unsupported_dtype(checkpoint: Path) -> None:
    edit_header(checkpoint, lambda h: h["model.norm.weight"].update(dtype="I32"))
    opened = open_checkpoint(checkpoint)  # another frontend may know what to do with it
    with pytest.raises(TensorError, match=r"model\.norm\.weight is I32, supported: F32, F16, BF16; give the .* float"):
        describe(opened)


def test_unsupported_dtype_of_other_files(tmp_path: Path) -> None:
    """What an adapter is read with."""
    save_file({"a": np.ones(2, np.int32)}, tmp_path / "x.safetensors")
    with pytest.raises(TensorError, match=r"x\.safetensors: tensor a is I32, supported"):
        SafetensorsFiles([tmp_path / "x.safetensors"])


def shards(checkpoint: Path) -> dict[str, str]:
    """Cut the one file in two with an index, as transformers does; returns the index."""
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names = sorted(tensors)
    index: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, checkpoint / file)
        index |= dict.fromkeys(part, file)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return index


def test_shards_that_disagree_with_the_index(checkpoint: Path) -> None:
    index = shards(checkpoint)
    describe(open_checkpoint(checkpoint))
    wrong = index | {"lm_head.weight": "model-00002-of-00002.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": wrong}))
    with pytest.raises(TensorError, match=r"puts tensor lm_head\.weight into model-00002.*it is in model-00001"):
        open_checkpoint(checkpoint)
    wrong = index | {"model.layers.9.mlp.down_proj.weight": "model-00002-of-00002.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": wrong}))
    with pytest.raises(TensorError, match=r"model\.layers\.9\.mlp\.down_proj\.weight into .* it is in none"):
        open_checkpoint(checkpoint)


def test_two_sources_for_one_tensor(checkpoint: Path) -> None:
    norm = load_file(checkpoint / "model.safetensors")["model.norm.weight"]
    save_file({"model.norm.weight": norm}, checkpoint / "other.safetensors")
    with pytest.raises(TensorError, match=r"model\.norm\.weight is in both model\.safetensors and other"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors", "/model.safetensors", "a/model.safetensors", "a\\model.safetensors", "", ".", "..",
        "C:model.safetensors", "model.bin", "\0.safetensors", "\x1b[2J.safetensors", 1, None, ["model.safetensors"],
        {"a": "b"}, "x" * 5000 + ".safetensors",
    ],
)  # fmt: skip
def test_index_that_names_no_file_of_the_folder(checkpoint: Path, name: object) -> None:
    index = shards(checkpoint) | {"lm_head.weight": name}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ConfigError, match=r"puts tensor lm_head\.weight into .*, expected the name of") as error:
        open_checkpoint(checkpoint)
    assert len(str(error.value)) < 600
    assert str(error.value).isprintable()


def test_index_that_names_what_no_folder_can_have(checkpoint: Path) -> None:
    index = shards(checkpoint) | {"lm_head.weight": "é" * 200 + ".safetensors"}  # 412 bytes
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(CheckpointError, match="not a path that can be read"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "raw", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 1}', "[" * 9999]
)
def test_index_that_is_none(checkpoint: Path, raw: str) -> None:
    (checkpoint / "model.safetensors.index.json").write_text(raw)
    with pytest.raises(ConfigError, match=r"index\.json"):
        open_checkpoint(checkpoint)


@pytest.fixture
def remote_code(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint in the remote-code layout, with an image tower."""
    from tests.tiny import to_remote_code

    to_remote_code(tiny_checkpoint, tmp_path / "remote", vision=True)
    return tmp_path / "remote"


@pytest.mark.parametrize("change", [{"padded_vocab_size": 65024}, {"position_encoding_2d": True}], ids=str)
def test_older_models_of_the_same_name(remote_code: Path, change: dict[str, object]) -> None:
    edit_config(remote_code, lambda c: c.update(change))
    opened = open_checkpoint(remote_code)
    with pytest.raises(ConfigError, match="a ChatGLM, ChatGLM2 or ChatGLM3 model"):
        describe(opened)


@pytest.mark.parametrize(
    ("key", "value"),
    [("multi_query_attention", False), ("add_bias_linear", True), ("rmsnorm", False), ("original_rope", False)],
)
def test_remote_code_variants_that_compute_something_else(remote_code: Path, key: str, value: object) -> None:
    edit_config(remote_code, lambda c: c.update({key: value}))
    opened = open_checkpoint(remote_code)
    with pytest.raises(ConfigError, match=f"{key} is {value}, supported"):
        describe(opened)


def test_image_tower_without_its_text_model(remote_code: Path) -> None:
    path = remote_code / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k.startswith("transformer.vision.")}, path)
    opened = open_checkpoint(remote_code)
    with pytest.raises(ConfigError, match=r"3 layers, and the checkpoint has 2 tensors; it is incomplete"):
        describe(opened)


def test_missing_shard(checkpoint: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing, first model-00002-of-00002"):
        open_checkpoint(checkpoint)


def test_pickles_are_refused_with_advice(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*use the model's safetensors"):
        open_checkpoint(checkpoint)


def test_config_that_is_no_json(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not valid JSON"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "rms_norm_eps", "vocab_size", "model_type"])
def test_missing_key(checkpoint: Path, key: str) -> None:
    edit_config(checkpoint, lambda c: c.pop(key))
    with pytest.raises(ConfigError, match=f"{key} is missing"):
        describe(open_checkpoint(checkpoint))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_act", "gelu", "hidden_act is 'gelu', supported: 'silu'"),
        ("hidden_size", "64", "hidden_size is '64', expected a whole number"),
        ("hidden_size", 0, "hidden_size is 0, expected 1 or more"),
        ("hidden_size", True, "hidden_size is True, expected a whole number"),
        ("num_key_value_heads", 3, "8 heads cannot share 3 KV heads"),
        ("rope_scaling", {"type": "yarn"}, "rope_scaling is"),
    ],
)
def test_unsupported_values(checkpoint: Path, key: str, value: object, message: str) -> None:
    edit_config(checkpoint, lambda c: c.update({key: value}))
    opened = open_checkpoint(checkpoint)
    with pytest.raises(ConfigError, match=message):
        describe(opened)


def test_stop_ids_that_are_no_ids(checkpoint: Path) -> None:
    edit_config(checkpoint, lambda c: c.update(eos_token_id=["a"]))
    config = open_checkpoint(checkpoint).config
    with pytest.raises(ConfigError, match="expected token ids"):
        config.ids("eos_token_id")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 4294967296, "num_hidden_layers is 4294967296, expected a whole number of at most"),
        ("num_hidden_layers", 2**31 - 1, "2147483647 layers, and the checkpoint has 36 tensors"),
        ("num_hidden_layers", [3], r"num_hidden_layers is \[3\], expected a whole number"),
        ("head_dim", 2**31 - 1, "config and weights disagree|head dims rotate"),
        ("rms_norm_eps", 1e400, "rms_norm_eps is inf, expected a finite number"),
        ("rms_norm_eps", 10**39, "rms_norm_eps is 10+, expected a finite number"),
        ("model_type", ["glm"], r"model_type is \['glm'\], expected text"),
        ("model_type", "x" * 10_000, "architecture 'xxx.* is not supported"),
        (
            "rope_parameters",
            {"rope_theta": 1e4, "partial_rotary_factor": 1e308},
            "partial_rotary_factor is .*, expected a share from 0 to 1",
        ),
        (
            "rope_parameters",
            {"rope_theta": 1e4, "partial_rotary_factor": -0.5},
            "partial_rotary_factor is .*, expected a share from 0 to 1",
        ),
        ("rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 0.2}, "3 of 16 head dims rotate"),
        ("rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 0}, "0 of 16 head dims rotate"),
        ("rope_parameters", {"rope_theta": float("nan")}, "rope_theta is nan, expected a finite number"),
    ],
)
def test_values_that_cannot_be(checkpoint: Path, key: str, value: object, message: str) -> None:
    edit_config(checkpoint, lambda c: c.update({key: value}))
    with pytest.raises(CheckpointError, match=message) as error:
        describe(open_checkpoint(checkpoint))
    assert len(str(error.value)) < 600


def test_configs_as_python_writes_them(checkpoint: Path) -> None:
    """A byte-order mark, and NaN and Infinity under keys that nobody reads here."""
    before = describe(open_checkpoint(checkpoint))[0]
    edit_config(checkpoint, lambda c: c.update(time_step_limit=[0.0, float("inf")], other=float("nan")))
    for name in ("config.json", "generation_config.json"):
        text = (checkpoint / name).read_text()
        (checkpoint / name).write_text(text, encoding="utf-8-sig")
    assert describe(open_checkpoint(checkpoint))[0] == before
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": 7, "top_p": NaN, "x": -Infinity, "top_k": 5}')
    assert open_checkpoint(checkpoint).generation_config().values == {"eos_token_id": 7, "top_k": 5}


def test_small_files_that_are_large(checkpoint: Path) -> None:
    """A file of nothing but brackets takes thirty times its size in memory."""
    (checkpoint / "config.json").write_bytes(b'{"a":[' + b"[]," * (2 << 20) + b"1]}")
    with pytest.raises(ConfigError, match=r"config\.json has 6,291,465 bytes, expected at most 4,194,304"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "raw", [b"[" * 100_000, b"[]", b'{"a": ' + b"9" * 5000 + b"}", b"\xff\xfe{}", b'{"a": "\\ud83d"}']
)
def test_small_files_that_are_no_json(checkpoint: Path, name: str, raw: bytes) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    (checkpoint / name).write_bytes(raw)

    def read_all() -> None:
        opened = open_checkpoint(checkpoint)
        opened.generation_config()
        opened.named_tokens()

    with pytest.raises(ConfigError, match=name):
        read_all()


def test_unknown_architecture_lists_the_known(checkpoint: Path) -> None:
    edit_config(checkpoint, lambda c: c.update(model_type="mamba"))
    with pytest.raises(
        CheckpointError, match=r"'mamba' in safetensors is not supported; .*in safetensors: chatglm, glm, glm4"
    ):
        describe(open_checkpoint(checkpoint))


def test_missing_tensor(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.pop("model.layers.1.mlp.down_proj.weight"))
    with pytest.raises(TensorError, match=r"model\.layers\.1\.mlp\.down_proj\.weight is missing"):
        describe(open_checkpoint(checkpoint))


def test_unexpected_tensor(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({"model.layers.1.extra": np.ones(4, np.float32)}))
    with pytest.raises(TensorError, match=r"model\.layers\.1\.extra is unexpected"):
        describe(open_checkpoint(checkpoint))


def test_misshapen_tensor(checkpoint: Path) -> None:
    edit_header(checkpoint, lambda h: h["model.layers.0.self_attn.k_proj.weight"].update(shape=[64, 32]))
    with pytest.raises(TensorError, match=r"k_proj\.weight \[64, 32\].*expected \[192, 64\] in all"):
        describe(open_checkpoint(checkpoint))


def test_damaged_values(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(bytes(raw))
    with pytest.raises(TensorError, match=r"model\.norm\.weight holds NaN or infinity"):
        export(checkpoint, tmp_path / "out", "int8-asym")
    assert not list(tmp_path.glob("*out*"))


def test_rope_settings_are_read_from_old_and_new_places(checkpoint: Path) -> None:
    both, _ = describe(open_checkpoint(checkpoint))
    edit_config(checkpoint, lambda c: (c.pop("rope_theta"), c.pop("partial_rotary_factor")))
    new, _ = describe(open_checkpoint(checkpoint))
    edit_config(checkpoint, lambda c: (c.pop("rope_parameters"), c.update(rope_theta=10000, partial_rotary_factor=0.5)))
    old, _ = describe(open_checkpoint(checkpoint))
    assert both == new == old
    edit_config(checkpoint, lambda c: c.pop("rope_theta"))
    with pytest.raises(ConfigError, match=r"rope_parameters\.rope_theta or rope_theta is missing"):
        describe(open_checkpoint(checkpoint))


def test_published_configs_are_understood(shared: Path) -> None:
    """Real config files, as far as they can be read without weights."""
    from edge.export.architectures.registry import ARCHITECTURES
    from edge.export.checkpoint.fields import Fields

    class Stub:
        shapes: dict[str, tuple[int, ...]] = {}  # noqa: RUF012

        format = "safetensors"

        def __init__(self, name: str) -> None:
            self.config = Fields(json.loads((shared / "configs" / name).read_text()), name)
            self.architecture = self.config.read(str, "model_type")

    def read(name: str) -> tuple[Any, ModelSpec]:
        stub: Any = Stub(name)
        return stub, ARCHITECTURES["safetensors", stub.architecture].read_spec(stub)

    stub, chat = read("glm-4-9b-chat-hf.json")
    assert (chat.num_layers, chat.hidden_size, chat.num_kv_heads, chat.rotary_dim) == (40, 4096, 2, 64)
    assert chat.num_parameters == 9_399_951_360
    assert "export it with --rope-theta 5000000" in doubts(stub, chat)[0]
    assert doubts(stub, replace(chat, rope_theta=5e6)) == ()
    assert "--rope-theta 100000000" in doubts(stub, replace(chat, max_position_embeddings=1048576))[0]
    stub, edge = read("glm-edge-1.5b-chat.json")
    assert doubts(stub, edge) == ()
    assert "--rotary-dim 64" in doubts(stub, replace(edge, rotary_dim=32))[0]
    assert "--rotary-dim 64" in doubts(stub, replace(chat, rope_theta=5e6, rotary_dim=128))[0]
    assert (edge.rotary_dim, edge.head_dim, edge.tied_embeddings, edge.qkv_bias) == (128, 128, True, False)

    # The remote-code layout says the same model in other words, and its rotary base rightly.
    bases = {
        "glm-4-9b": (1e4, 8192, 2),
        "glm-4-9b-chat": (5e6, 131072, 2),
        "glm-4-9b-chat-1m": (1e8, 1048576, 4),
        "glm-4v-9b": (1e4, 8192, 2),
    }
    for name, (theta, context, kv_heads) in bases.items():
        stub, spec = read(f"{name}.json")
        expected = replace(
            chat, architecture="chatglm", rope_theta=theta, max_position_embeddings=context, num_kv_heads=kv_heads
        )
        assert spec == expected, name
        assert doubts(stub, spec) == ()


def test_rotary_halves_is_a_permutation_that_pairs_neighbours() -> None:
    spec = ModelSpec(
        "glm", 1, 8, 8, 2, 1, 8, 4, 1e4, 1e-5, 8, 8, qkv_bias=False, tied_embeddings=True, output_norms=False
    )
    order = rotary_halves(spec)
    assert sorted(order) == list(range(32))
    assert order[:8].tolist() == [0, 2, 1, 3, 4, 5, 6, 7]  # first q head: 4 dims turn, 4 stay
    assert order[16:24].tolist() == [16, 18, 17, 19, 20, 21, 22, 23]  # the k head
    assert order[24:].tolist() == list(range(24, 32))  # the v head stays


def test_weights_are_read_when_they_are_needed(tiny_checkpoint: Path) -> None:
    """And the last one is not read again."""
    reads: list[str] = []

    def read(name: str) -> FloatArray:
        reads.append(name)
        return weights.read(name)

    weights = make_plan(tiny_checkpoint, ExportSettings("fp32")).weights
    names = ["norm.weight", "embed.weight"]
    some = ReadWhenNeeded(read, names)
    assert (list(some), len(some), "norm.weight" in some, "lm_head.weight" in some) == (names, 2, True, False)
    assert reads == []
    assert some["embed.weight"] is some["embed.weight"]
    np.testing.assert_array_equal(some["norm.weight"], weights.read("norm.weight"))
    assert "embed.weight" in some
    assert reads == ["embed.weight", "norm.weight"]
    with pytest.raises(KeyError):
        some["lm_head.weight"]
