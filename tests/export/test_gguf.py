"""GGUF files of strangers: metadata that say something else than a model, or cannot be true."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType

from edge.export.architectures.doubts import doubts
from edge.export.architectures.registry import describe
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.export.checkpoint.gguf import part_names
from edge.runtime.errors import CheckpointError, ConfigError, TensorError, TokenizerError
from tests.fuzz.targets.checkpoint import HEAD_DIM, VOCABULARY, make_gguf

Change = Callable[[gguf.GGUFWriter], object]
U32, I32, STRING = GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.STRING


def put(key: str, value: object, kind: GGUFValueType | None = None) -> Change:
    """Set one value; None removes it."""

    def change(writer: gguf.GGUFWriter) -> None:
        fields = writer.kv_data[0]
        fields.pop(key, None)
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            assert kind is not None
            writer.add_key_value(key, value, kind)

    return change


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def make(change: Change | None = None, architecture: str = "glm4", name: str = "x.gguf") -> Path:
        make_gguf(tmp_path / name, architecture, change)
        return tmp_path / name

    return make


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (put("general.type", "adapter", STRING), "is a LoRA, not a model; .* --adapter"),
        (put("general.type", "mmproj", STRING), "is the image tower of a model"),
        (put("general.type", "imatrix", STRING), "is an importance matrix"),
        (put("general.architecture", "clip", STRING), "is the image tower of a model"),
        (put("adapter.type", "lora", STRING), "is a LoRA, not a model"),
        (lambda writer: writer.tensors[0].clear(), "is a vocabulary without a model"),
        (lambda writer: writer.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((4, 32), np.float32)), "is a LoRA"),
    ],
)
def test_files_that_are_no_model(file: Callable[..., Path], change: Change, what: str) -> None:
    with pytest.raises(CheckpointError, match=what):
        open_checkpoint(file(change))


def test_other_words_of_type_are_models(file: Callable[..., Path]) -> None:
    for value in ("model", "LLM"):
        describe(open_checkpoint(file(put("general.type", value, STRING))))
    describe(open_checkpoint(file(put("general.type", None))))


@pytest.mark.parametrize("key", ["pre", "model", "tokens", "token_type", "merges"])
def test_tokenizers_that_lack_something(file: Callable[..., Path], tmp_path: Path, key: str) -> None:
    """And work once the model's tokenizer.json lies beside."""
    path = file(put(f"tokenizer.ggml.{key}", None))
    with pytest.raises(
        TokenizerError, match=f"ggml.{key} is missing, .*; put the model's tokenizer.json into the same"
    ):
        open_checkpoint(path).write_tokenizer(tmp_path / "out.json")
    open_checkpoint(file(name="whole.gguf")).write_tokenizer(tmp_path / "tokenizer.json")
    open_checkpoint(path).write_tokenizer(tmp_path / "out.json")
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("pre", 1, U32), ("pre", "x" * 5000, STRING), ("tokens", [1, 2], None), ("tokens", "abc", STRING),
        ("merges", [1], None), ("merges", "a b", STRING), ("token_type", ["a"] * VOCABULARY, None),
        ("token_type", [1.0] * VOCABULARY, None),
    ],
)  # fmt: skip
def test_tokenizers_of_other_types(
    file: Callable[..., Path], tmp_path: Path, key: str, value: object, kind: GGUFValueType | None
) -> None:
    checkpoint = open_checkpoint(file(put(f"tokenizer.ggml.{key}", value, kind)))
    checkpoint.named_tokens()
    with pytest.raises(TokenizerError, match=f"{key} is .*put the model's tokenizer.json") as error:
        checkpoint.write_tokenizer(tmp_path / "out.json")
    assert len(str(error.value)) < 500


def test_merges_of_other_tokens(file: Callable[..., Path], tmp_path: Path) -> None:
    for merge in ("\x1b[2J b", f"{'x' * 5000} b"):
        with pytest.raises(TokenizerError, match="merges do not fit the vocabulary") as error:
            open_checkpoint(file(put("tokenizer.ggml.merges", [merge]))).write_tokenizer(tmp_path / "out.json")
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("key", "value", "kind", "what"),
    [
        ("block_count", 2**32 - 1, U32, "block_count is 4294967295, expected a whole number of at most"),
        ("block_count", 2**31 - 1, U32, "2147483647 layers, and the checkpoint has 13 tensors"),
        ("block_count", 15, U32, "15 layers, and the checkpoint has 13 tensors"),
        ("block_count", 2, U32, "are missing"),
        ("block_count", 0, U32, "block_count is 0, expected 1 or more"),
        ("embedding_length", 2**31 - 1, U32, "config and weights disagree"),
        ("attention.head_count", 2**31 - 1, U32, "config and weights disagree"),
        ("attention.head_count", [2, 2], None, r"head_count is \[2, 2\], expected a whole number"),
        ("attention.head_count", -4, I32, "head_count is -4, expected 1 or more"),
        ("attention.key_length", 2**31 - 1, U32, "head dims rotate|disagree"),
        ("rope.dimension_count", 3, U32, "3 of 4 head dims rotate, expected an even part"),
        ("rope.dimension_count", 6, U32, "6 of 4 head dims rotate, expected an even part"),
        ("rope.dimension_count", 0, U32, "dimension_count is 0, expected 1 or more"),
        ("rope.dimension_count", -2, I32, "dimension_count is -2, expected 1 or more"),
        ("rope.freq_base", float("nan"), GGUFValueType.FLOAT32, "freq_base is nan, expected a finite number"),
        ("rope.freq_base", -1.0, GGUFValueType.FLOAT32, "expected a base above 0"),
        ("attention.layer_norm_rms_epsilon", float("inf"), GGUFValueType.FLOAT32, "epsilon is inf, expected a finite"),
        ("attention.layer_norm_rms_epsilon", 2.0, GGUFValueType.FLOAT32, "an eps between 0 and 1"),
        ("context_length", "64", STRING, "context_length is '64', expected a whole number"),
    ],
)
def test_numbers_that_cannot_be(
    file: Callable[..., Path], key: str, value: object, kind: GGUFValueType, what: str
) -> None:
    checkpoint = open_checkpoint(file(put(f"glm4.{key}", value, kind)))
    with pytest.raises((ConfigError, TensorError), match=what):
        describe(checkpoint)


def test_an_embedding_without_rows(file: Callable[..., Path]) -> None:
    path = file(lambda writer: writer.tensors[0].pop("token_embd.weight"))
    with pytest.raises(ConfigError, match=r"glm4\.vocab_size is missing"):
        describe(open_checkpoint(path))


def test_types_that_gguf_does_not_read(file: Callable[..., Path]) -> None:
    """Found before anything is compressed."""

    def change(writer: gguf.GGUFWriter) -> None:
        writer.tensors[0]["output_norm.weight"].dtype = gguf.GGMLQuantizationType.I32

    checkpoint = open_checkpoint(file(change))
    with pytest.raises(TensorError, match=r"output_norm\.weight is I32, which gguf cannot read; use another"):
        describe(checkpoint)


def test_ids_that_are_none(file: Callable[..., Path]) -> None:
    for value, kind in ((2**32 - 1, U32), (-1, I32)):
        checkpoint = open_checkpoint(file(put("tokenizer.ggml.eos_token_id", value, kind)))
        assert checkpoint.generation_config().ids("eos_token_id") == ()
        assert "eos_token" not in checkpoint.named_tokens()


def test_names_of_parts() -> None:
    assert part_names("a-00002-of-00003.gguf") == [f"a-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for name in ("a-00001-of-00000.gguf", "a-00000-of-00002.gguf", "a-00003-of-00002.gguf", "a.gguf", "a-1-of-2.gguf"):
        assert part_names(name) == [name]


def test_a_part_under_another_name(file: Callable[..., Path]) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        put("split.count", 3, GGUFValueType.UINT16)(writer)
        put("split.tensors.count", 100, I32)(writer)

    with pytest.raises(CheckpointError, match="one of the 3 parts of a split file, and not named like one"):
        open_checkpoint(file(change))
    for name in ("x-00001-of-00000.gguf", "x-00004-of-00003.gguf"):
        describe(open_checkpoint(file(name=name)))


@pytest.mark.parametrize(
    ("architecture", "rotary_dim", "expected"),
    [("glm4", HEAD_DIM // 2, None), ("glm4", HEAD_DIM, 2), ("llama", HEAD_DIM, None), ("llama", 2, 4)],
)
def test_dims_that_no_published_model_rotates(
    file: Callable[..., Path], architecture: str, rotary_dim: int, expected: int | None
) -> None:
    """Early conversions of GLM-4-0414 say the whole head."""
    checkpoint = open_checkpoint(file(put(f"{architecture}.rope.dimension_count", rotary_dim, U32), architecture))
    spec, _ = describe(checkpoint)
    assert spec.rotary_dim == rotary_dim
    found = doubts(checkpoint, spec)
    assert [f"--rotary-dim {expected}" in doubt for doubt in found] == ([] if expected is None else [True])
