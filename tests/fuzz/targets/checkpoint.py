"""Checkpoints of strangers: config.json, generation_config.json, the index of shards, safetensors and GGUF.

Each is read as far as `edge inspect` and the plan of an export read it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, TokenType
from safetensors.numpy import save, save_file

from edge.export.architectures.doubts import doubts
from edge.export.architectures.registry import describe
from edge.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edge.export.checkpoint.safetensors import INDEX
from edge.export.weights.names import canonical_shapes
from tests.fuzz.target import Target

HIDDEN, INTERMEDIATE, VOCABULARY, HEADS, HEAD_DIM = 8, 16, 12, 2, 4
CONFIG = {
    "model_type": "glm4",
    "num_hidden_layers": 1,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "head_dim": HEAD_DIM,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.5},
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "eos_token_id": [1, 2],
    "pad_token_id": -1,
    "quantization_config": {"quant_method": "fp8"},
    "rope_scaling": None,
}
REMOTE_CODE = {
    "model_type": "chatglm",
    "num_layers": 1,
    "hidden_size": HIDDEN,
    "ffn_hidden_size": INTERMEDIATE,
    "num_attention_heads": HEADS,
    "multi_query_attention": True,
    "multi_query_group_num": 1,
    "kv_channels": HEAD_DIM,
    "layernorm_epsilon": 1e-5,
    "padded_vocab_size": VOCABULARY,
    "seq_length": 64,
    "rope_ratio": 500,
    "add_qkv_bias": False,
    "eos_token_id": 1,
}
GENERATION = {"eos_token_id": [1, 2], "pad_token_id": -1, "bos_token_id": 0, "temperature": 0.8, "do_sample": True}
JSON_WORDS = (b"1e999", b"NaN", b"-1", b"4294967296", b"null", b"[", b"{", b'"\\ud83d"')
GGUF_WORDS = tuple(
    [number.to_bytes(width, "little") for width in (4, 8) for number in (0, 1, 4, 8, 9, 31, 64, 2**31, 2**32 - 1)]
    + [b"GGUF", b"general.alignment", b"general.type", b"adapter", b"split.count", b"\xff\xff", b"blk.0."]
)
HEADER_WORDS = (b'"dtype":"F32"', b'"shape":[', b'"data_offsets":[0,', b"__metadata__", b"U8", b"9223372036854775807")


def describe_all(checkpoint: Checkpoint) -> None:
    """What `edge inspect` and the plan of an export ask of a checkpoint, and what its sidecars do."""
    spec, _ = describe(checkpoint)
    doubts(checkpoint, spec)
    canonical_shapes(spec)
    for config in (checkpoint.generation_config(), checkpoint.config):
        for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
            config.ids(name)
    checkpoint.weight_files(), checkpoint.small_files(), checkpoint.named_tokens(), checkpoint.chat_template()


def _tensors() -> dict[str, np.ndarray]:
    q, kv = HEADS * HEAD_DIM, HEAD_DIM
    block: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (q, HIDDEN),
        "self_attn.k_proj.weight": (kv, HIDDEN),
        "self_attn.v_proj.weight": (kv, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, q),
        "mlp.gate_up_proj.weight": (2 * INTERMEDIATE, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
    }
    norms = ("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")
    block |= {f"{norm}.weight": (HIDDEN,) for norm in norms}
    shapes = {f"model.layers.0.{name}": shape for name, shape in block.items()}
    shapes |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (VOCABULARY, HIDDEN))
    return {name: np.ones(shape, np.float16) for name, shape in {**shapes, "model.norm.weight": (HIDDEN,)}.items()}


def _make_folder(folder: Path) -> Path:
    """A checkpoint without its config.json, in one file."""
    made = folder / "checkpoint"
    made.mkdir(exist_ok=True)
    (made / "config.json").write_text(json.dumps(CONFIG))
    save_file(_tensors(), made / "model.safetensors")
    return made


def _in_folder(name: str) -> Callable[[bytes, Path], None]:
    """A reader of one file among valid ones."""

    def read(raw: bytes, folder: Path) -> None:
        (folder / "checkpoint" / name).write_bytes(raw)
        describe_all(open_checkpoint(folder / "checkpoint"))

    return read


def _config_seeds(folder: Path) -> list[bytes]:
    made = _make_folder(folder)
    remote = folder / "remote"
    remote.mkdir(exist_ok=True)
    theirs = _tensors()
    block = {
        "input_layernorm": "input_layernorm",
        "post_attention_layernorm": "post_attention_layernorm",
        "self_attention.dense": "self_attn.o_proj",
        "mlp.dense_h_to_4h": "mlp.gate_up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
    }
    qkv = [theirs[f"model.layers.0.self_attn.{x}_proj.weight"] for x in "qkv"]
    layer = "transformer.encoder.layers.0."
    ours = {f"{layer}{name}.weight": theirs[f"model.layers.0.{other}.weight"] for name, other in block.items()}
    ours[f"{layer}self_attention.query_key_value.weight"] = np.concatenate(qkv)
    ours["transformer.embedding.word_embeddings.weight"] = theirs["model.embed_tokens.weight"]
    ours["transformer.encoder.final_layernorm.weight"] = theirs["model.norm.weight"]
    ours["transformer.output_layer.weight"] = theirs["lm_head.weight"]
    save_file(ours, remote / "model.safetensors")
    assert made.is_dir()
    return [json.dumps(CONFIG).encode(), json.dumps(REMOTE_CODE).encode()]


def _read_config(raw: bytes, folder: Path) -> None:
    place = folder / ("remote" if b"kv_channels" in raw else "checkpoint")
    (place / "config.json").write_bytes(raw)
    describe_all(open_checkpoint(place))


def _generation_seeds(folder: Path) -> list[bytes]:
    _make_folder(folder)
    return [json.dumps(GENERATION).encode()]


def _index_seeds(folder: Path) -> list[bytes]:
    made = _make_folder(folder)
    tensors = _tensors()
    names = sorted(tensors)
    (made / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, made / file)
        weight_map |= dict.fromkeys(part, file)
    return [json.dumps({"metadata": {"total_size": 1000}, "weight_map": weight_map}).encode()]


def _file_seeds(folder: Path) -> list[bytes]:
    return [(_make_folder(folder) / "model.safetensors").read_bytes()]


def _header_seeds(folder: Path) -> list[bytes]:
    _make_folder(folder)
    raw = save(_tensors(), {"format": "pt"})
    return [raw[8 : 8 + int.from_bytes(raw[:8], "little")]]


def _read_header(header: bytes, folder: Path) -> None:
    raw = save(_tensors(), {"format": "pt"})
    body = raw[8 + int.from_bytes(raw[:8], "little") :]
    _in_folder("model.safetensors")(len(header).to_bytes(8, "little") + header + body, folder)


def _gguf_seeds(folder: Path) -> list[bytes]:
    (folder / "out").mkdir(exist_ok=True)
    return [make_gguf(folder / "seed.gguf", architecture) for architecture in ("llama", "glm4")]


def make_gguf(path: Path, architecture: str, change: Callable[[gguf.GGUFWriter], object] | None = None) -> bytes:
    """A file of one block, with all metadata that a tokenizer needs. change: what the writer is told last."""
    tokens = [chr(ord("a") + i) for i in range(VOCABULARY - 4)] + ["ab", "<|user|>", "<|end|>", "<|observation|>"]
    control = [TokenType.NORMAL] * (VOCABULARY - 3) + [TokenType.CONTROL] * 3
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_DIM if architecture == "llama" else HEAD_DIM // 2)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("glm4")
    writer.add_token_list(tokens)
    writer.add_token_types(control)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(VOCABULARY - 2)
    writer.add_pad_token_id(2**32 - 1)
    writer.add_chat_template("{{ messages }}")
    shapes = {
        "token_embd.weight": (VOCABULARY, 32),
        "output.weight": (VOCABULARY, 32),
        "output_norm.weight": (32,),
        "blk.0.attn_norm.weight": (32,),
        "blk.0.ffn_norm.weight": (32,),
        "blk.0.attn_q.weight": (HEADS * HEAD_DIM, 32),
        "blk.0.attn_k.weight": (HEAD_DIM, 32),
        "blk.0.attn_v.weight": (HEAD_DIM, 32),
        "blk.0.attn_output.weight": (32, HEADS * HEAD_DIM),
        "blk.0.ffn_down.weight": (32, 32),
    }
    if architecture == "llama":
        shapes |= {"blk.0.ffn_gate.weight": (32, 32), "blk.0.ffn_up.weight": (32, 32)}
    else:
        shapes |= {"blk.0.ffn_up.weight": (64, 32)}
        shapes |= {"blk.0.post_attention_norm.weight": (32,), "blk.0.post_ffw_norm.weight": (32,)}
    for name, shape in shapes.items():
        whole = np.ones(shape, np.float32)
        if len(shape) == 2 and shape[1] == 32:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(whole, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, whole)
    if change is not None:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def _read_gguf(raw: bytes, folder: Path) -> None:
    (folder / "it.gguf").write_bytes(raw)
    checkpoint = open_checkpoint(folder / "it.gguf")
    describe_all(checkpoint)
    checkpoint.write_tokenizer(folder / "out" / "tokenizer.json")


TARGETS = (
    Target("config", _config_seeds, _read_config, "json", JSON_WORDS),
    Target("generation_config", _generation_seeds, _in_folder("generation_config.json"), "json", JSON_WORDS),
    Target("index", _index_seeds, _in_folder(INDEX), "json", (*JSON_WORDS, b"../model.safetensors", b"/dev/zero")),
    Target("safetensors", _file_seeds, _in_folder("model.safetensors"), "bytes", HEADER_WORDS),
    Target("safetensors_header", _header_seeds, _read_header, "json", HEADER_WORDS),
    Target("gguf", _gguf_seeds, _read_gguf, "bytes", GGUF_WORDS),
)
