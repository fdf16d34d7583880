"""Qwen2ForCausalLM, which Qwen2.5 is too, and Qwen3ForCausalLM as transformers stores them.

Source: models/{qwen2,qwen3}/{configuration,modeling}_*.py of huggingface/transformers 4.57.6.
"""

from __future__ import annotations

from edge.export.architectures.architecture import HALVES, Architecture
from edge.export.architectures.transformers import TIED_COPY, read_spec, separate_sources
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.runtime.spec import ModelSpec


def _qwen2_spec(checkpoint: Checkpoint) -> ModelSpec:
    checkpoint.config.require("use_sliding_window", False)
    return read_spec(checkpoint, qkv_bias=True)  # which config.json does not say


def _qwen3_spec(checkpoint: Checkpoint) -> ModelSpec:
    checkpoint.config.require("use_sliding_window", False)
    checkpoint.config.require("attention_bias", False)
    return read_spec(checkpoint, qkv_bias=False, qk_norms=True)


QWEN2 = Architecture(_qwen2_spec, separate_sources, HALVES, "qwen2", "Qwen2ForCausalLM", TIED_COPY)
QWEN3 = Architecture(_qwen3_spec, separate_sources, HALVES, "qwen3", "Qwen3ForCausalLM", TIED_COPY)
