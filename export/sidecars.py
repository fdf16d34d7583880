"""The small files of a bundle: tokenizer, chat template, config.json, generation_config.json.

In: an open checkpoint and its spec. Out: the files, the tokenizer and the ids that end an answer. Knows nothing about
weights.
"""

from __future__ import annotations

import json
from pathlib import Path

from edge.export.checkpoint import Checkpoint
from edge.runtime import bundle
from edge.runtime.spec import ModelSpec
from edge.runtime.tokenizer import Tokenizer


def write_sidecars(checkpoint: Checkpoint, spec: ModelSpec, folder: Path) -> tuple[Tokenizer, tuple[int, ...]]:
    """Write them all; returns the tokenizer and the stop ids. Raises TokenizerError and ConfigError."""
    checkpoint.write_tokenizer(folder / bundle.TOKENIZER)
    if (template := checkpoint.chat_template()) is not None:
        (folder / bundle.CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    stops = _stop_ids(checkpoint)
    _write_configs(checkpoint, spec, stops, folder)
    return Tokenizer(folder / bundle.TOKENIZER), stops


def _stop_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Every id that ends an answer: those of generation_config and of config, in this order."""
    found = checkpoint.generation_config().ids("eos_token_id") + checkpoint.config.ids("eos_token_id")
    return tuple(dict.fromkeys(found))


def _write_configs(checkpoint: Checkpoint, spec: ModelSpec, stops: tuple[int, ...], folder: Path) -> None:
    """config.json, generation_config.json and tokenizer_config.json, where openvino_genai and optimum-intel look."""
    generation = {**checkpoint.generation_config().values, "eos_token_id": list(stops)}
    config = {
        "architectures": ["Glm4ForCausalLM" if spec.output_norms else "GlmForCausalLM"],
        "model_type": "glm4" if spec.output_norms else "glm",
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "partial_rotary_factor": spec.rotary_dim / spec.head_dim,
        "rope_theta": spec.rope_theta,
        "rms_norm_eps": spec.rms_norm_eps,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "attention_bias": spec.qkv_bias,
        "tie_word_embeddings": spec.tied_embeddings,
        "hidden_act": "silu",
        "eos_token_id": list(stops),
    }
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": spec.max_position_embeddings,
    }
    files = {bundle.GENERATION_CONFIG: generation, bundle.CONFIG: config, bundle.TOKENIZER_CONFIG: tokenizer}
    for name, values in files.items():
        text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
