"""Seeded tiny checkpoints, written the way transformers writes them, and their reference logits.

The reference is transformers' own float64 and float32 forward. Their difference is what float32 rounding does to this
very model, and the tests measure our error in units of it instead of in a tuned tolerance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 320  # 256 bytes, special tokens, and rows that no token uses
SPECIAL = ("<|endoftext|>", "<|user|>", "<|observation|>", "<|assistant|>", "<|system|>")
STOP_IDS = (256, 257, 258)
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Tiny:
    """What makes one tiny architecture different."""

    name: str
    hidden_size: int = 64
    intermediate_size: int = 128
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 16
    partial_rotary: float = 0.5
    bias: bool = True
    tied: bool = False
    dtype: str = "float32"
    vocab_size: int = VOCAB
    max_position_embeddings: int = 256
    architecture: str = "glm"
    rope_theta: float = 10000.0
    num_layers: int = 3
    spread: float = 0.15  # standard deviation of weights


TINIES = (
    Tiny("partial-bias-untied"),
    Tiny("full-tied", partial_rotary=1.0, bias=False, tied=True),
    Tiny("one-kv-head", num_kv_heads=1),
    Tiny("odd-groups", hidden_size=96, intermediate_size=160, num_heads=6, num_kv_heads=3),
    Tiny("no-gqa", num_heads=4, num_kv_heads=4, bias=False),
    Tiny("0414", architecture="glm4"),
    Tiny("0414-32b", architecture="glm4", num_heads=6, num_kv_heads=1, bias=False),
    Tiny("llama", architecture="llama", partial_rotary=1.0, bias=False),
    Tiny("qwen2", architecture="qwen2", partial_rotary=1.0, tied=True),
    Tiny("qwen3", architecture="qwen3", num_heads=4, head_dim=32, partial_rotary=1.0, bias=False),
)
MODELS = {
    "glm": (GlmConfig, GlmForCausalLM),
    "glm4": (Glm4Config, Glm4ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def make(tiny: Tiny, folder: Path, **more: object) -> PreTrainedModel:
    """Write the checkpoint and return its model in float32. more: for its config."""
    torch.manual_seed(7)
    config_class, model_class = MODELS[tiny.architecture]
    config = config_class(
        vocab_size=tiny.vocab_size,
        hidden_size=tiny.hidden_size,
        intermediate_size=tiny.intermediate_size,
        num_hidden_layers=tiny.num_layers,
        num_attention_heads=tiny.num_heads,
        num_key_value_heads=tiny.num_kv_heads,
        head_dim=tiny.head_dim,
        attention_bias=tiny.bias,
        tie_word_embeddings=tiny.tied,
        rope_theta=tiny.rope_theta,
        rms_norm_eps=1.5625e-07,
        max_position_embeddings=tiny.max_position_embeddings,
        eos_token_id=list(STOP_IDS),
        pad_token_id=STOP_IDS[0],
        **({"partial_rotary_factor": tiny.partial_rotary} if "glm" in tiny.architecture else {}),
        **more,
    )
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, tiny.spread)
    model.to(getattr(torch, tiny.dtype)).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())["model_type"]
    assert written == tiny.architecture, f"{tiny.architecture} is tested by a checkpoint that calls itself {written}"
    add_both_rope_places(folder, tiny)
    write_tokenizer(folder)
    # Read back: .to() would have rounded the rotary frequencies as well.
    return model_class.from_pretrained(folder, dtype=torch.float32).eval()


def to_remote_code(folder: Path, out: Path, vision: bool = False) -> None:
    """The same tiny GlmForCausalLM in the layout of the remote code, as glm-4-9b-chat was published.

    Written out name by name, so that it repeats nothing that the reader under test does.
    """
    theirs = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    ours = {
        "transformer.embedding.word_embeddings.weight": theirs["model.embed_tokens.weight"],
        "transformer.encoder.final_layernorm.weight": theirs["model.norm.weight"],
        "transformer.output_layer.weight": theirs["lm_head.weight"],
        "transformer.rotary_pos_emb.inv_freq": torch.ones(config["head_dim"] // 4),
    }
    for layer in range(config["num_hidden_layers"]):
        old, new = f"model.layers.{layer}.", f"transformer.encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            parts = [theirs[f"{old}self_attn.{x}_proj.{kind}"] for x in ("q", "k", "v")]
            ours[f"{new}self_attention.query_key_value.{kind}"] = torch.cat(parts)
        for name, other in {
            "input_layernorm": "input_layernorm",
            "post_attention_layernorm": "post_attention_layernorm",
            "self_attention.dense": "self_attn.o_proj",
            "mlp.dense_h_to_4h": "mlp.gate_up_proj",
            "mlp.dense_4h_to_h": "mlp.down_proj",
        }.items():
            ours[f"{new}{name}.weight"] = theirs[f"{old}{other}.weight"]
    if vision:
        ours["transformer.vision.boi"] = torch.ones(1, 1, config["hidden_size"])
        ours["transformer.vision.conv.weight"] = torch.ones(4, 4, 2, 2)
    out.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in ours.items()}, out / "model.safetensors")
    remote = {
        "model_type": "chatglm",
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": config["num_attention_heads"],
        "multi_query_attention": True,
        "multi_query_group_num": config["num_key_value_heads"],
        "kv_channels": config["head_dim"],
        "layernorm_epsilon": config["rms_norm_eps"],
        "padded_vocab_size": config["vocab_size"],
        "seq_length": config["max_position_embeddings"],
        "add_qkv_bias": config["attention_bias"],
        "add_bias_linear": False,
        "rmsnorm": True,
        "post_layer_norm": True,
        "original_rope": True,
        "apply_residual_connection_post_layernorm": False,
        "tie_word_embeddings": False,
        "eos_token_id": list(STOP_IDS),
    }
    if config["rope_theta"] != 10_000:
        remote["rope_ratio"] = config["rope_theta"] / 10_000
    (out / "config.json").write_text(json.dumps(remote))
    write_tokenizer(out)


def add_both_rope_places(folder: Path, tiny: Tiny) -> None:
    """transformers 5 reads rope_parameters, 4.57 the flat keys; a checkpoint that both read alike carries both."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] = {
        "rope_theta": config["rope_theta"],
        "partial_rotary_factor": tiny.partial_rotary,
        "rope_type": "default",
    }
    path.write_text(json.dumps(config))


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges, with GLM's kind of special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


@torch.no_grad()
def reference_logits(model: PreTrainedModel, ids: list[int]) -> tuple[np.ndarray, float]:
    """Float64 logits (T, vocab), and how far transformers' own float32 logits are from them."""
    tokens = torch.tensor([ids])
    in_float32 = model.float()(tokens).logits[0].double().numpy()
    in_float64 = model.double()(tokens).logits[0].numpy()
    model.float()
    return in_float64, float(np.abs(in_float32 - in_float64).max())
