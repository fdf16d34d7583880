"""The members of the GLM-4 family as they are published: config.json, and names and shapes of tensors.

In: a member's name, or a config of its model_type. Out: the config; a `Layout`. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
Tensors = Iterator[tuple[str, tuple[int, ...]]]

# --- The published config.json of each --------------------------------------------------------------------------------

CHATGLM_9B = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "ffn_hidden_size": 13696,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1.5625e-07,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 40,
    "original_rope": True,
    "padded_vocab_size": 151552,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 8192,  # without rope_ratio: 1
    "use_cache": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.30.2",
    "tie_word_embeddings": False,
    "eos_token_id": [151329, 151336, 151338],
    "pad_token_id": 151329,
}
GLM_9B = {
    "architectures": ["GlmForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 13696,
    "max_position_embeddings": 8192,
    "model_type": "glm",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "pad_token_id": 151329,
    "rms_norm_eps": 1.5625e-07,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.0.dev0",
    "use_cache": True,
    "vocab_size": 151552,
}
EDGE_1_5B = GLM_9B | {
    "attention_bias": False,
    "eos_token_id": [59246, 59253, 59255],
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pad_token_id": 59246,
    "partial_rotary_factor": 1.0,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "transformers_version": "4.47.0.dev0",
    "vocab_size": 59264,
}
GLM4_9B = GLM_9B | {
    "architectures": ["Glm4ForCausalLM"],
    "max_position_embeddings": 32768,
    "model_type": "glm4",
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "transformers_version": "4.52.0.dev0",
}
VISION_4V = {
    "dropout_prob": 0.0,
    "hidden_act": "gelu",
    "in_channels": 3,
    "num_hidden_layers": 63,
    "hidden_size": 1792,
    "patch_size": 14,
    "num_heads": 16,
    "intermediate_size": 15360,
    "layer_norm_eps": 1e-06,
    "num_positions": 6401,
    "image_size": 1120,
    "scaling_factor": 8,
}
VISION_41V = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "depth": 24,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "image_size": 336,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 13696,
    "model_type": "glm4v",
    "num_heads": 12,
    "out_hidden_size": 4096,
    "patch_size": 14,
    "rms_norm_eps": 1e-05,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
# As transformers 4.57 writes it, which has the published shapes as its defaults.
GLM_41V = {
    "architectures": ["Glm4vForConditionalGeneration"],
    "model_type": "glm4v",
    "image_end_token_id": 151340,
    "image_start_token_id": 151339,
    "image_token_id": 151343,
    "text_config": GLM4_9B
    | {
        "architectures": None,
        "max_position_embeddings": 65536,
        "model_type": "glm4v_text",
        "rope_scaling": {"mrope_section": [8, 12, 12], "rope_type": "default"},
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.6",
    "video_end_token_id": 151342,
    "video_start_token_id": 151341,
    "video_token_id": 151344,
    "vision_config": VISION_41V,
}
PIXELS_41V = {  # its preprocessor_config.json
    "do_rescale": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Glm4vImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "merge_size": 2,
    "patch_size": 14,
    "processor_class": "Glm4vProcessor",
    "size": {"shortest_edge": 12544, "longest_edge": 9633792},
    "temporal_patch_size": 2,
}
MEMBERS: dict[str, Config] = {
    "glm-4-9b": CHATGLM_9B | {"_name_or_path": "THUDM/glm-4-9b"},
    "glm-4-9b-chat": CHATGLM_9B
    | {"_name_or_path": "THUDM/glm4-9b-chat", "num_hidden_layers": 40, "seq_length": 131072, "rope_ratio": 500},
    "glm-4-9b-chat-1m": CHATGLM_9B
    | {
        "_name_or_path": "THUDM/glm-4-9b-chat-1m",
        "multi_query_group_num": 4,
        "num_hidden_layers": 40,
        "seq_length": 1048576,
        "rope_ratio": 10000,
    },
    "glm-4v-9b": CHATGLM_9B
    | {
        "_name_or_path": "THUDM/glm-4v-9b",
        "attn_implementation": "sdpa",
        "boi_token_id": 151339,
        "eoi_token_id": 151340,
        "transformers_version": "4.44.0",
        "vision_config": VISION_4V,
    },
    "glm-4-9b-hf": GLM_9B,
    # As published: the conversion lost rope_ratio, and the base should be 5e6 here and 1e8 below.
    "glm-4-9b-chat-hf": GLM_9B | {"max_position_embeddings": 131072},
    # Not seen; it is what the same conversion would make of glm-4-9b-chat-1m.
    "glm-4-9b-chat-1m-hf": GLM_9B | {"max_position_embeddings": 1048576, "num_key_value_heads": 4},
    "glm-edge-1.5b-chat": EDGE_1_5B,
    # Shapes as in glm-edge-v-5b's text part; max_position_embeddings was not seen and is taken from 1.5b.
    "glm-edge-4b-chat": EDGE_1_5B
    | {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "num_hidden_layers": 40,
        "num_key_value_heads": 6,
        "tie_word_embeddings": False,
    },
    "GLM-4-9B-0414": GLM4_9B,
    "GLM-4.1V-9B-Thinking": GLM_41V,
    "GLM-4-32B-0414": GLM4_9B
    | {
        "attention_bias": False,
        "hidden_size": 6144,
        "intermediate_size": 23040,
        "num_attention_heads": 48,
        "num_hidden_layers": 61,
    },
}

# --- Layouts: names and shapes ----------------------------------------------------------------------------------------


def chatglm_tensors(config: Config) -> Tensors:
    """The remote code's ChatGLMForConditionalGeneration: qkv, and gate and up, are one matrix each."""
    hidden, ffn, head_dim = config["hidden_size"], config["ffn_hidden_size"], config["kv_channels"]
    q_size = config["num_attention_heads"] * head_dim
    qkv_size = q_size + 2 * config["multi_query_group_num"] * head_dim
    yield "transformer.embedding.word_embeddings.weight", (config["padded_vocab_size"], hidden)
    yield "transformer.rotary_pos_emb.inv_freq", (head_dim // 4,)  # a buffer, not a parameter; half of a head rotates
    for layer in range(config["num_layers"]):
        prefix = f"transformer.encoder.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attention.query_key_value.weight", (qkv_size, hidden)
        if config["add_qkv_bias"]:
            yield f"{prefix}.self_attention.query_key_value.bias", (qkv_size,)
        yield f"{prefix}.self_attention.dense.weight", (hidden, q_size)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.dense_h_to_4h.weight", (2 * ffn, hidden)
        yield f"{prefix}.mlp.dense_4h_to_h.weight", (hidden, ffn)
    yield "transformer.encoder.final_layernorm.weight", (hidden,)
    yield "transformer.output_layer.weight", (config["padded_vocab_size"], hidden)
    if "vision_config" in config:
        yield from vision_tensors(config["vision_config"], hidden, ffn)


def vision_tensors(vision: Config, text_hidden: int, text_ffn: int) -> Tensors:
    """glm-4v-9b's tower, its 2 x 2 convolution, and the gated projection into the text model."""
    hidden, ffn, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]

    def with_bias(name: str, shape: tuple[int, ...]) -> Tensors:
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]

    yield "transformer.vision.boi", (1, 1, text_hidden)
    yield "transformer.vision.eoi", (1, 1, text_hidden)
    yield "transformer.vision.patch_embedding.cls_embedding", (1, hidden)
    yield from with_bias("transformer.vision.patch_embedding.proj", (hidden, vision["in_channels"], patch, patch))
    yield "transformer.vision.patch_embedding.position_embedding.weight", (vision["num_positions"], hidden)
    for layer in range(vision["num_hidden_layers"]):
        prefix = f"transformer.vision.transformer.layers.{layer}"
        yield from with_bias(f"{prefix}.input_layernorm", (hidden,))
        yield from with_bias(f"{prefix}.attention.query_key_value", (3 * hidden, hidden))
        yield from with_bias(f"{prefix}.attention.dense", (hidden, hidden))
        yield from with_bias(f"{prefix}.mlp.fc1", (ffn, hidden))
        yield from with_bias(f"{prefix}.mlp.fc2", (hidden, ffn))
        yield from with_bias(f"{prefix}.post_attention_layernorm", (hidden,))
    projection = "transformer.vision.linear_proj"
    yield f"{projection}.linear_proj.weight", (text_hidden, text_hidden)
    yield from with_bias(f"{projection}.norm1", (text_hidden,))
    yield f"{projection}.gate_proj.weight", (text_ffn, text_hidden)
    yield f"{projection}.dense_h_to_4h.weight", (text_ffn, text_hidden)
    yield f"{projection}.dense_4h_to_h.weight", (text_hidden, text_ffn)
    yield from with_bias("transformer.vision.conv", (text_hidden, hidden, 2, 2))


def glm_tensors(config: Config) -> Tensors:
    """transformers' GlmForCausalLM."""
    yield from decoder_tensors(config, ("input_layernorm", "post_attention_layernorm"))


def glm4_tensors(config: Config) -> Tensors:
    """transformers' Glm4ForCausalLM: glm with a norm after each sublayer as well."""
    norms = ("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")
    yield from decoder_tensors(config, norms)


def decoder_tensors(config: Config, norms: tuple[str, ...]) -> Tensors:
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q_size, kv_size = (config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value"))
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, size in {"q": q_size, "k": kv_size, "v": kv_size}.items():
            yield f"{prefix}.self_attn.{name}_proj.weight", (size, hidden)
            if config["attention_bias"]:
                yield f"{prefix}.self_attn.{name}_proj.bias", (size,)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, q_size)
        yield f"{prefix}.mlp.gate_up_proj.weight", (2 * ffn, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, ffn)
        for norm in norms:
            yield f"{prefix}.{norm}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)


def glm4v_tensors(config: Config) -> Tensors:
    """transformers' Glm4vForConditionalGeneration: the tower, then a glm4 under another prefix."""
    yield from glm4v_tower_tensors(config["vision_config"])
    for name, shape in glm4_tensors(config["text_config"]):
        yield name.replace("model.", "model.language_model."), shape


def glm4v_tower_tensors(vision: Config) -> Tensors:
    """What transformers calls intermediate_size is the width of the merger, and out_hidden_size that of every MLP."""
    hidden, out, merger, patch = (vision[f"{key}_size"] for key in ("hidden", "out_hidden", "intermediate", "patch"))
    places = (vision["image_size"] // patch) ** 2
    kernel = (hidden, vision["in_channels"], vision["temporal_patch_size"], patch, patch)
    prefix = "model.visual"
    yield f"{prefix}.embeddings.position_embedding.weight", (places, hidden)
    yield f"{prefix}.patch_embed.proj.weight", kernel
    yield f"{prefix}.patch_embed.proj.bias", (hidden,)
    for layer in range(vision["depth"]):
        block = f"{prefix}.blocks.{layer}"
        yield f"{block}.norm1.weight", (hidden,)
        yield f"{block}.norm2.weight", (hidden,)
        yield f"{block}.attn.qkv.weight", (3 * hidden, hidden)
        yield f"{block}.attn.proj.weight", (hidden, hidden)
        yield f"{block}.mlp.gate_proj.weight", (out, hidden)
        yield f"{block}.mlp.up_proj.weight", (out, hidden)
        yield f"{block}.mlp.down_proj.weight", (hidden, out)
    yield f"{prefix}.merger.proj.weight", (out, out)
    yield f"{prefix}.merger.post_projection_norm.weight", (out,)
    yield f"{prefix}.merger.post_projection_norm.bias", (out,)
    yield f"{prefix}.merger.gate_proj.weight", (merger, out)
    yield f"{prefix}.merger.up_proj.weight", (merger, out)
    yield f"{prefix}.merger.down_proj.weight", (out, merger)
    yield f"{prefix}.post_conv_layernorm.weight", (hidden,)
    yield f"{prefix}.downsample.weight", (out, hidden, vision["spatial_merge_size"], vision["spatial_merge_size"])
    yield f"{prefix}.downsample.bias", (out,)
    yield f"{prefix}.post_layernorm.weight", (hidden,)


@dataclass(frozen=True)
class Layout:
    """The form in which one model_type is published."""

    tensors: Callable[[Config], Tensors]
    shard_bytes: int  # most bytes of a file with several tensors


LAYOUTS = {
    "chatglm": Layout(chatglm_tensors, 2_000_000_000),
    "glm": Layout(glm_tensors, 5_000_000_000),
    "glm4": Layout(glm4_tensors, 5_000_000_000),
    "glm4v": Layout(glm4v_tensors, 5_000_000_000),
}
