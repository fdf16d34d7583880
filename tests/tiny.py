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
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GlmConfig, GlmForCausalLM

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


TINIES = (
    Tiny("partial-bias-untied"),
    Tiny("full-tied", partial_rotary=1.0, bias=False, tied=True),
    Tiny("one-kv-head", num_kv_heads=1),
    Tiny("odd-groups", hidden_size=96, intermediate_size=160, num_heads=6, num_kv_heads=3),
    Tiny("no-gqa", num_heads=4, num_kv_heads=4, bias=False),
)


def make(tiny: Tiny, folder: Path) -> GlmForCausalLM:
    """Write the checkpoint and return its model in float32."""
    torch.manual_seed(7)
    config = GlmConfig(
        vocab_size=tiny.vocab_size,
        hidden_size=tiny.hidden_size,
        intermediate_size=tiny.intermediate_size,
        num_hidden_layers=3,
        num_attention_heads=tiny.num_heads,
        num_key_value_heads=tiny.num_kv_heads,
        head_dim=tiny.head_dim,
        partial_rotary_factor=tiny.partial_rotary,
        attention_bias=tiny.bias,
        tie_word_embeddings=tiny.tied,
        rope_theta=10000.0,
        rms_norm_eps=1.5625e-07,
        max_position_embeddings=tiny.max_position_embeddings,
        eos_token_id=list(STOP_IDS),
        pad_token_id=STOP_IDS[0],
    )
    model = GlmForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.15)
    model.to(getattr(torch, tiny.dtype)).save_pretrained(folder)
    add_both_rope_places(folder, tiny)
    write_tokenizer(folder)
    # Read back: .to() would have rounded the rotary frequencies as well.
    return GlmForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


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
def reference_logits(model: GlmForCausalLM, ids: list[int]) -> tuple[np.ndarray, float]:
    """Float64 logits (T, vocab), and how far transformers' own float32 logits are from them."""
    tokens = torch.tensor([ids])
    in_float32 = model.float()(tokens).logits[0].double().numpy()
    in_float64 = model.double()(tokens).logits[0].numpy()
    model.float()
    return in_float64, float(np.abs(in_float32 - in_float64).max())
