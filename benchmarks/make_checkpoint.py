"""Write a synthetic checkpoint of a family member's exact shapes, in its publisher's layout; all weights are noise.

    python benchmarks/make_checkpoint.py glm-4-9b-chat-hf OUT [--layers N] [--seed S] [--dtype bfloat16]

It is for measuring exports and speed without the real weights. A 9B model takes 18.8 GB and the 32B one 65 GB; delete
them afterwards. No two tensors or rows are equal, because OpenVINO stores equal constants once, and disks may too. What
a tensor holds depends only on the seed and its name: a checkpoint with fewer layers has the same first layers.

Each weight is the normal quantile of 16 random bits, looked up in a table: deviation 0.02 around 0, norms around 1.
That is an exact normal distribution in 65,536 steps, up to 4.3 deviations, at a fifth of the cost of a normal
generator, so that the disk is the limit. Weights are written as they are made, so memory stays below 100 MB.

config.json has the keys and values of the published one, with two differences: it has no auto_map (as it comes without
remote code), and eos and pad are ids of the byte-level tokenizer written next to it. The image ids of glm-4v-9b stay as
published.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

Config = Mapping[str, Any]
Tensors = Iterator[tuple[str, tuple[int, ...]]]

DTYPES: dict[str, tuple[str, np.dtype[Any]]] = {  # config name -> safetensors name, stored type
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
    "float16": ("F16", np.dtype("<f2")),
    "float32": ("F32", np.dtype("<f4")),
}
DEVIATION = 0.02
CHUNK = 1 << 20  # weights made at once
INDEX = "model.safetensors.index.json"
SPECIAL = ("<|endoftext|>", "<|user|>", "<|observation|>")  # ids 256 to 258, after the bytes; each ends an answer

# --- Members: the published config.json of each -----------------------------------------------------------------------

CHATGLM_9B = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "ffn_hidden_size": 13696,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1.5625e-07,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 40,
    "original_rope": True,
    "padded_vocab_size": 151552,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 8192,  # without rope_ratio: 1
    "use_cache": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.30.2",
    "tie_word_embeddings": False,
    "eos_token_id": [151329, 151336, 151338],
    "pad_token_id": 151329,
}
GLM_9B = {
    "architectures": ["GlmForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 13696,
    "max_position_embeddings": 8192,
    "model_type": "glm",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "pad_token_id": 151329,
    "rms_norm_eps": 1.5625e-07,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.0.dev0",
    "use_cache": True,
    "vocab_size": 151552,
}
EDGE_1_5B = GLM_9B | {
    "attention_bias": False,
    "eos_token_id": [59246, 59253, 59255],
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pad_token_id": 59246,
    "partial_rotary_factor": 1.0,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "transformers_version": "4.47.0.dev0",
    "vocab_size": 59264,
}
GLM4_9B = GLM_9B | {
    "architectures": ["Glm4ForCausalLM"],
    "max_position_embeddings": 32768,
    "model_type": "glm4",
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "transformers_version": "4.52.0.dev0",
}
VISION_4V = {
    "dropout_prob": 0.0,
    "hidden_act": "gelu",
    "in_channels": 3,
    "num_hidden_layers": 63,
    "hidden_size": 1792,
    "patch_size": 14,
    "num_heads": 16,
    "intermediate_size": 15360,
    "layer_norm_eps": 1e-06,
    "num_positions": 6401,
    "image_size": 1120,
    "scaling_factor": 8,
}
MEMBERS: dict[str, Config] = {
    "glm-4-9b": CHATGLM_9B | {"_name_or_path": "THUDM/glm-4-9b"},
    "glm-4-9b-chat": CHATGLM_9B
    | {"_name_or_path": "THUDM/glm4-9b-chat", "num_hidden_layers": 40, "seq_length": 131072, "rope_ratio": 500},
    "glm-4-9b-chat-1m": CHATGLM_9B
    | {
        "_name_or_path": "THUDM/glm-4-9b-chat-1m",
        "multi_query_group_num": 4,
        "num_hidden_layers": 40,
        "seq_length": 1048576,
        "rope_ratio": 10000,
    },
    "glm-4v-9b": CHATGLM_9B
    | {
        "_name_or_path": "THUDM/glm-4v-9b",
        "attn_implementation": "sdpa",
        "boi_token_id": 151339,
        "eoi_token_id": 151340,
        "transformers_version": "4.44.0",
        "vision_config": VISION_4V,
    },
    "glm-4-9b-hf": GLM_9B,
    # As published: the conversion lost rope_ratio, and the base should be 5e6 here and 1e8 below.
    "glm-4-9b-chat-hf": GLM_9B | {"max_position_embeddings": 131072},
    # Not seen; it is what the same conversion would make of glm-4-9b-chat-1m.
    "glm-4-9b-chat-1m-hf": GLM_9B | {"max_position_embeddings": 1048576, "num_key_value_heads": 4},
    "glm-edge-1.5b-chat": EDGE_1_5B,
    # Shapes as in glm-edge-v-5b's text part; max_position_embeddings was not seen and is taken from 1.5b.
    "glm-edge-4b-chat": EDGE_1_5B
    | {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "num_hidden_layers": 40,
        "num_key_value_heads": 6,
        "tie_word_embeddings": False,
    },
    "GLM-4-9B-0414": GLM4_9B,
    "GLM-4-32B-0414": GLM4_9B
    | {
        "attention_bias": False,
        "hidden_size": 6144,
        "intermediate_size": 23040,
        "num_attention_heads": 48,
        "num_hidden_layers": 61,
    },
}

# --- Layouts: names and shapes ----------------------------------------------------------------------------------------


def chatglm_tensors(config: Config) -> Tensors:
    """The remote code's ChatGLMForConditionalGeneration: qkv, and gate and up, are one matrix each."""
    hidden, ffn, head_dim = config["hidden_size"], config["ffn_hidden_size"], config["kv_channels"]
    q_size = config["num_attention_heads"] * head_dim
    qkv_size = q_size + 2 * config["multi_query_group_num"] * head_dim
    yield "transformer.embedding.word_embeddings.weight", (config["padded_vocab_size"], hidden)
    yield "transformer.rotary_pos_emb.inv_freq", (head_dim // 4,)  # a buffer, not a parameter; half of a head rotates
    for layer in range(config["num_layers"]):
        prefix = f"transformer.encoder.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attention.query_key_value.weight", (qkv_size, hidden)
        if config["add_qkv_bias"]:
            yield f"{prefix}.self_attention.query_key_value.bias", (qkv_size,)
        yield f"{prefix}.self_attention.dense.weight", (hidden, q_size)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.dense_h_to_4h.weight", (2 * ffn, hidden)
        yield f"{prefix}.mlp.dense_4h_to_h.weight", (hidden, ffn)
    yield "transformer.encoder.final_layernorm.weight", (hidden,)
    yield "transformer.output_layer.weight", (config["padded_vocab_size"], hidden)
    if "vision_config" in config:
        yield from vision_tensors(config["vision_config"], hidden, ffn)


def vision_tensors(vision: Config, text_hidden: int, text_ffn: int) -> Tensors:
    """glm-4v-9b's tower, its 2 x 2 convolution, and the gated projection into the text model."""
    hidden, ffn, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]

    def with_bias(name: str, shape: tuple[int, ...]) -> Tensors:
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]

    yield "transformer.vision.boi", (1, 1, text_hidden)
    yield "transformer.vision.eoi", (1, 1, text_hidden)
    yield "transformer.vision.patch_embedding.cls_embedding", (1, hidden)
    yield from with_bias("transformer.vision.patch_embedding.proj", (hidden, vision["in_channels"], patch, patch))
    yield "transformer.vision.patch_embedding.position_embedding.weight", (vision["num_positions"], hidden)
    for layer in range(vision["num_hidden_layers"]):
        prefix = f"transformer.vision.transformer.layers.{layer}"
        yield from with_bias(f"{prefix}.input_layernorm", (hidden,))
        yield from with_bias(f"{prefix}.attention.query_key_value", (3 * hidden, hidden))
        yield from with_bias(f"{prefix}.attention.dense", (hidden, hidden))
        yield from with_bias(f"{prefix}.mlp.fc1", (ffn, hidden))
        yield from with_bias(f"{prefix}.mlp.fc2", (hidden, ffn))
        yield from with_bias(f"{prefix}.post_attention_layernorm", (hidden,))
    projection = "transformer.vision.linear_proj"
    yield f"{projection}.linear_proj.weight", (text_hidden, text_hidden)
    yield from with_bias(f"{projection}.norm1", (text_hidden,))
    yield f"{projection}.gate_proj.weight", (text_ffn, text_hidden)
    yield f"{projection}.dense_h_to_4h.weight", (text_ffn, text_hidden)
    yield f"{projection}.dense_4h_to_h.weight", (text_hidden, text_ffn)
    yield from with_bias("transformer.vision.conv", (text_hidden, hidden, 2, 2))


def glm_tensors(config: Config) -> Tensors:
    """transformers' GlmForCausalLM."""
    yield from decoder_tensors(config, ("input_layernorm", "post_attention_layernorm"))


def glm4_tensors(config: Config) -> Tensors:
    """transformers' Glm4ForCausalLM: glm with a norm after each sublayer as well."""
    norms = ("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")
    yield from decoder_tensors(config, norms)


def decoder_tensors(config: Config, norms: tuple[str, ...]) -> Tensors:
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q_size, kv_size = (config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value"))
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, size in {"q": q_size, "k": kv_size, "v": kv_size}.items():
            yield f"{prefix}.self_attn.{name}_proj.weight", (size, hidden)
            if config["attention_bias"]:
                yield f"{prefix}.self_attn.{name}_proj.bias", (size,)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, q_size)
        yield f"{prefix}.mlp.gate_up_proj.weight", (2 * ffn, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, ffn)
        for norm in norms:
            yield f"{prefix}.{norm}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)


@dataclass(frozen=True)
class Layout:
    """The form in which one model_type is published."""

    tensors: Callable[[Config], Tensors]
    shard_bytes: int  # most bytes of a file with several tensors


LAYOUTS = {
    "chatglm": Layout(chatglm_tensors, 2_000_000_000),
    "glm": Layout(glm_tensors, 5_000_000_000),
    "glm4": Layout(glm4_tensors, 5_000_000_000),
}

# --- Writing ----------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("member", choices=MEMBERS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, help="write only the first layers, also of a vision tower")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    args = parser.parse_args()
    config = with_layers(MEMBERS[args.member], args.layers) if args.layers is not None else MEMBERS[args.member]
    try:
        size = write_checkpoint(args.out, {**config, "torch_dtype": args.dtype}, args.seed)
    except OSError as error:
        print(f"{args.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {args.member}, {size:,} bytes of weights")
    return 0


def with_layers(config: Config, layers: int) -> Config:
    """The config with at most this many layers, under each key that counts them."""
    counts = {key: min(layers, config[key]) for key in ("num_layers", "num_hidden_layers") if key in config}
    vision = {"vision_config": with_layers(config["vision_config"], layers)} if "vision_config" in config else {}
    return {**config, **counts, **vision}


def write_checkpoint(folder: Path, config: Config, seed: int = 0, shard_bytes: int | None = None) -> int:
    """Write config, tokenizer and weights into a new folder; returns bytes of weights. On OSError nothing is left."""
    layout = LAYOUTS[config["model_type"]]
    itemsize = DTYPES[config["torch_dtype"]][1].itemsize
    files = split(dict(layout.tensors(config)), itemsize, shard_bytes or layout.shard_bytes)
    size = sum(itemsize * math.prod(shape) for shapes in files.values() for shape in shapes.values())
    folder.mkdir(parents=True)
    try:
        if (free := shutil.disk_usage(folder).free) < size:
            raise OSError(f"{size:,} bytes needed, {free:,} are free")
        ids = {"eos_token_id": [256 + i for i in range(len(SPECIAL))], "pad_token_id": 256}
        write_json(folder / "config.json", {**config, **ids})
        write_tokenizer(folder)
        for name, shapes in files.items():
            write_shard(folder / name, shapes, config["torch_dtype"], seed)
        if len(files) > 1:
            weight_map = {tensor: name for name, shapes in files.items() for tensor in shapes}
            write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    except BaseException:  # an interrupt too
        shutil.rmtree(folder)
        raise
    return size


def split(shapes: dict[str, tuple[int, ...]], itemsize: int, shard_bytes: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """File name -> its tensors, in order; a new file begins where the next tensor does not fit, as in transformers."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, shape in shapes.items():
        size = itemsize * math.prod(shape)
        if shards[-1] and used + size > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)}


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, seed: int) -> None:
    kind, stored = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    offset = 0
    for name, shape in shapes.items():
        size = stored.itemsize * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the weights to 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            if name.endswith("inv_freq"):
                steps = np.arange(shape[0]) / shape[0]
                file.write((10000.0**-steps).astype(stored).tobytes())
            else:
                write_normal(file, name, math.prod(shape), dtype, seed)


def write_normal(file: BinaryIO, name: str, count: int, dtype: str, seed: int) -> None:
    is_norm = "norm" in name and name.endswith(".weight")
    table = normal_table(1.0 if is_norm else 0.0, dtype)
    random = np.random.PCG64([seed, *name.encode()])
    values = np.empty(min(count, CHUNK), table.dtype)
    for start in range(0, count, CHUNK):
        part = values[: count - start]
        bits = random.random_raw(-(-part.size // 4)).view(np.uint16)[: part.size]
        np.take(table, bits, out=part, mode="clip")  # never out of bounds; "raise" would copy `out` first
        file.write(part.data)


@cache
def normal_table(mean: float, dtype: str) -> npt.NDArray[Any]:
    """The 65,536 equally likely weights, as raw integers: copying those is faster than copying bfloat16."""
    normal = NormalDist(mean, DEVIATION)
    quantiles = np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)])
    stored = quantiles.astype(DTYPES[dtype][1])
    return stored.view(f"<u{stored.itemsize}")


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer, so that a bundle made from this can be run."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[0],
        "pad_token": SPECIAL[0],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
