"""The remote-code layout of GLM-4-9B, as it was published first."""

from __future__ import annotations

from collections.abc import Collection

from edge.export.architectures.architecture import GLM_LAYOUT, Architecture, weight_sources
from edge.export.architectures.eva import EVA
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.export.weights.names import Sources
from edge.runtime.errors import ConfigError
from edge.runtime.spec import ModelSpec


def _chatglm_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The remote-code layout of glm-4-9b, -chat, -chat-1m and the text part of GLM-4V."""
    config = checkpoint.config
    if config.find("padded_vocab_size") == 65024 or config.find("position_encoding_2d") is not None:
        raise ConfigError(
            f"{config.origin}: a ChatGLM, ChatGLM2 or ChatGLM3 model (their vocabulary or positions), which share the "
            "name chatglm with GLM-4 but not its tokenizer; expected a GLM-4 checkpoint"
        )
    config.require("multi_query_attention", True)
    config.require("rmsnorm", True)
    config.require("post_layer_norm", True)
    config.require("original_rope", True)
    config.require("add_bias_linear", False)
    config.require("apply_residual_connection_post_layernorm", False)
    head_dim = config.positive("kv_channels")
    return ModelSpec(
        architecture="chatglm",
        num_layers=config.positive("num_layers"),
        hidden_size=config.positive("hidden_size"),
        intermediate_size=config.positive("ffn_hidden_size"),
        num_heads=config.positive("num_attention_heads"),
        num_kv_heads=config.positive("multi_query_group_num"),
        head_dim=head_dim,
        rotary_dim=head_dim // 2,
        rope_theta=10_000 * config.read(float, "rope_ratio", default=1.0),
        rms_norm_eps=config.read(float, "layernorm_epsilon"),
        vocab_size=config.positive("padded_vocab_size"),
        max_position_embeddings=config.positive("seq_length"),
        qkv_bias=config.read(bool, "add_qkv_bias", default=False),
        tied_embeddings=config.read(bool, "tie_word_embeddings", default=False),
        output_norms=False,
    )


def _chatglm_sources(spec: ModelSpec, _names: Collection[str]) -> Sources:
    """Rows of query_key_value are all of q, then k, then v; rows of dense_h_to_4h are gate, then up."""
    block = {
        "input_norm.weight": ("input_layernorm.weight",),
        "attn.qkv.weight": ("self_attention.query_key_value.weight",),
        "attn.qkv.bias": ("self_attention.query_key_value.bias",),
        "attn.o.weight": ("self_attention.dense.weight",),
        "post_norm.weight": ("post_attention_layernorm.weight",),
        "mlp.gate_up.weight": ("mlp.dense_h_to_4h.weight",),
        "mlp.down.weight": ("mlp.dense_4h_to_h.weight",),
    }
    outside = {
        "embed.weight": "transformer.embedding.word_embeddings.weight",
        "norm.weight": "transformer.encoder.final_layernorm.weight",
        "lm_head.weight": "transformer.output_layer.weight",
    }
    return weight_sources(spec, outside, "transformer.encoder.layers.{}.", block)


CHATGLM = Architecture(
    _chatglm_spec,
    _chatglm_sources,
    GLM_LAYOUT,
    "glm",
    "GlmForCausalLM",
    ignored=(EVA.prefix, "transformer.rotary_pos_emb.inv_freq"),
    tower=EVA,
)
