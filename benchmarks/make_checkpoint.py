"""Write a synthetic checkpoint of a family member's exact shapes: random bfloat16 weights, every layer different.

    python benchmarks/make_checkpoint.py glm-4-9b-chat-hf OUT [--layers N]

For measuring exports and speed where the real weights are not at hand. What it answers is noise. The 9B model takes
18.8 GB; delete it afterwards. Equal layers would not do: OpenVINO stores equal constants once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

# The published config.json of each, as far as shapes and arithmetic go.
GLM_9B = {
    "model_type": "glm",
    "num_hidden_layers": 40,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "partial_rotary_factor": 0.5,
    "rope_theta": 5_000_000.0,
    "rms_norm_eps": 1.5625e-07,
    "vocab_size": 151552,
    "max_position_embeddings": 131072,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
MEMBERS = {
    "glm-4-9b-chat-hf": GLM_9B,
    "glm-4-9b-chat-1m-hf": GLM_9B
    | {"num_key_value_heads": 4, "rope_theta": 100_000_000.0, "max_position_embeddings": 1048576},
    "glm-edge-1.5b-chat": GLM_9B
    | {
        "num_hidden_layers": 28,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "partial_rotary_factor": 1.0,
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-05,
        "vocab_size": 59264,
        "max_position_embeddings": 8192,
        "attention_bias": False,
        "tie_word_embeddings": True,
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("member", choices=MEMBERS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the member has")
    args = parser.parse_args()
    config = dict(MEMBERS[args.member])
    if args.layers is not None:
        config["num_hidden_layers"] = args.layers
    shapes = dict(tensor_shapes(config))
    needed = 2 * sum(int(np.prod(shape)) for shape in shapes.values())
    args.out.mkdir(parents=True)
    if shutil.disk_usage(args.out).free < needed:
        print(f"{args.out}: {needed:,} bytes needed, too few are free", file=sys.stderr)
        return 1
    (args.out / "config.json").write_text(json.dumps(config | {"eos_token_id": [256, 257, 258]}, indent=1))
    write_tokenizer(args.out)
    write_weights(args.out / "model.safetensors", shapes)
    print(f"{args.out}: {args.member}, {len(shapes)} tensors, {needed:,} bytes")
    return 0


def tensor_shapes(config: dict[str, object]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a GlmForCausalLM state dict."""
    c = {key: value for key, value in config.items() if isinstance(value, int)}
    hidden, ffn, vocab = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    heads = {"q": c["num_attention_heads"], "k": c["num_key_value_heads"], "v": c["num_key_value_heads"]}
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(c["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        for name, count in heads.items():
            yield f"{prefix}.self_attn.{name}_proj.weight", (count * c["head_dim"], hidden)
            if config["attention_bias"]:
                yield f"{prefix}.self_attn.{name}_proj.bias", (count * c["head_dim"],)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, heads["q"] * c["head_dim"])
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_up_proj.weight", (2 * ffn, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)


def write_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """One safetensors file, written tensor by tensor; norms around 1, the rest around 0 with deviation 0.02."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            values = rng.standard_normal(int(np.prod(shape)), np.float32) * np.float32(0.02)
            if "norm" in name:
                values += 1
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer, so that a bundle made from this can be run."""
    tokenizer = Tokenizer(
        models.BPE({char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|user|>", "<|observation|>")
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    sys.exit(main())
