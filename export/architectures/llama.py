"""LlamaForCausalLM as transformers stores it, and MistralForCausalLM where it attends to everything.

Models whose tokenizer is not byte-level, as those of Llama 2 and Mistral 7B, are refused for that when it is read.

Source: models/{llama,mistral}/{configuration,modeling}_*.py of huggingface/transformers 4.57.6.
"""

from __future__ import annotations

from dataclasses import replace

from edge.export.architectures.architecture import HALVES, Architecture
from edge.export.architectures.transformers import TIED_COPY, read_spec, separate_sources
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.runtime.spec import ModelSpec


def _llama_spec(checkpoint: Checkpoint) -> ModelSpec:
    config = checkpoint.config
    config.require("attention_bias", False)
    config.require("mlp_bias", False)
    config.require("sliding_window")  # Mistral 7B v0.1 has one, later ones do not
    return read_spec(checkpoint, qkv_bias=False, rope_theta=10_000.0)  # which old configs leave out


# Old conversions of Llama store the rotary frequencies of every layer.
LLAMA = Architecture(
    _llama_spec, separate_sources, HALVES, "llama", "LlamaForCausalLM", (*TIED_COPY, ".rotary_emb.inv_freq")
)
MISTRAL = replace(LLAMA, model_type="mistral", model_class="MistralForCausalLM")
