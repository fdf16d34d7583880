"""Qwen2ForCausalLM as transformers stores it, which Qwen2.5 is too.

Source: models/qwen2/{configuration,modeling}_qwen2.py of huggingface/transformers 4.57.6.
"""

from __future__ import annotations

from edge.export.architectures.architecture import HALVES, Architecture
from edge.export.architectures.transformers import TIED_COPY, read_spec, separate_sources
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.runtime.spec import ModelSpec


def _qwen2_spec(checkpoint: Checkpoint) -> ModelSpec:
    checkpoint.config.require("use_sliding_window", False)
    return read_spec(checkpoint, qkv_bias=True)  # which config.json does not say


QWEN2 = Architecture(_qwen2_spec, separate_sources, HALVES, "qwen2", "Qwen2ForCausalLM", TIED_COPY)
