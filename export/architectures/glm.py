"""GlmForCausalLM and Glm4ForCausalLM as transformers stores them.

The second is GLM-4-0414, in 9B and 32B, and GLM-Z1, which differ in shapes, weights and chat templates alone.
"""

from __future__ import annotations

from dataclasses import replace

from edge.export.architectures.architecture import GLM_LAYOUT, Architecture
from edge.export.architectures.transformers import TIED_COPY, joined_sources, read_spec
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.runtime.spec import ModelSpec


def _glm_spec(checkpoint: Checkpoint) -> ModelSpec:
    qkv_bias = checkpoint.config.read(bool, "attention_bias", default=False)
    return read_spec(checkpoint, qkv_bias=qkv_bias, rotary_part=0.5, output_norms=checkpoint.architecture == "glm4")


GLM = Architecture(_glm_spec, joined_sources, GLM_LAYOUT, "glm", "GlmForCausalLM", TIED_COPY)
GLM4 = replace(GLM, model_type="glm4", model_class="Glm4ForCausalLM")
