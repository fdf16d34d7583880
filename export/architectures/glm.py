"""GlmForCausalLM and Glm4ForCausalLM as transformers stores them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from edge.export.architectures.architecture import GLM_LAYOUT, Architecture, weight_sources
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.export.weights.names import Sources
from edge.runtime.spec import ModelSpec


def _glm_spec(checkpoint: Checkpoint) -> ModelSpec:
    """GlmForCausalLM and Glm4ForCausalLM. transformers 5 moved rope settings; old and new places are read."""
    config = checkpoint.config
    config.require("hidden_act", "silu")
    config.require("rope_scaling", None)
    config.require("rope_parameters.rope_type", "default")
    num_heads = config.positive("num_attention_heads")
    hidden_size = config.positive("hidden_size")
    head_dim = config.positive("head_dim", default=hidden_size // num_heads)
    rotary_part = config.part("rope_parameters.partial_rotary_factor", "partial_rotary_factor", default=0.5)
    return ModelSpec(
        architecture=checkpoint.architecture,
        num_layers=config.positive("num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=config.positive("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=config.positive("num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        rotary_dim=int(head_dim * rotary_part),
        rope_theta=config.read(float, "rope_parameters.rope_theta", "rope_theta"),
        rms_norm_eps=config.read(float, "rms_norm_eps"),
        vocab_size=config.positive("vocab_size"),
        max_position_embeddings=config.positive("max_position_embeddings"),
        qkv_bias=config.read(bool, "attention_bias", default=False),
        tied_embeddings=config.read(bool, "tie_word_embeddings", default=False),
        output_norms=checkpoint.architecture == "glm4",
    )


def _glm_sources(spec: ModelSpec, _names: Collection[str]) -> Sources:
    block = {
        "input_norm.weight": ("input_layernorm.weight",),
        "attn.qkv.weight": tuple(f"self_attn.{x}_proj.weight" for x in "qkv"),
        "attn.qkv.bias": tuple(f"self_attn.{x}_proj.bias" for x in "qkv"),
        "attn.o.weight": ("self_attn.o_proj.weight",),
        "attn.out_norm.weight": ("post_self_attn_layernorm.weight",),
        "post_norm.weight": ("post_attention_layernorm.weight",),
        "mlp.gate_up.weight": ("mlp.gate_up_proj.weight",),
        "mlp.down.weight": ("mlp.down_proj.weight",),
        "mlp.out_norm.weight": ("post_mlp_layernorm.weight",),
    }
    outside = {
        "embed.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
    }
    return weight_sources(spec, outside, "model.layers.{}.", block)


_TIED_COPY = ("lm_head.weight",)  # some files store a tied head a second time

GLM = Architecture(_glm_spec, _glm_sources, GLM_LAYOUT, "glm", "GlmForCausalLM", _TIED_COPY)
GLM4 = replace(GLM, model_type="glm4", model_class="Glm4ForCausalLM")  # GLM-4-0414 and GLM-Z1
