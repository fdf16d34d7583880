"""The architectures we map: what a config says, and where each canonical weight lies.

In: an open checkpoint. Out: its ModelSpec, the table for `names`, and doubts about what it says. Adding a model is
adding a record to `ARCHITECTURES`. Knows nothing about graphs or compression.

Sources: models/{glm,glm4}/{configuration,modeling}_*.py of huggingface/transformers 4.57.6, and the conversion of the
remote-code layout to it (models/glm/convert_glm_weights_to_hf.py at eaed17f); for GGUF names and keys
gguf-py/gguf/constants.py and conversion/{chatglm,glm}.py of ggml-org/llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from edge.export.checkpoint.checkpoint import Checkpoint, Format
from edge.export.names import Sources, Weights, map_names
from edge.runtime.errors import CheckpointError, ConfigError, shown
from edge.runtime.spec import ModelSpec

GLM4_VOCABULARY = 151_552  # rows of GLM-4's embedding; GLM-Edge has another vocabulary
VISION = "transformer.vision."  # GLM-4V's image tower, which a text bundle leaves out


@dataclass(frozen=True)
class Architecture:
    """How one kind of checkpoint is read."""

    read_spec: Callable[[Checkpoint], ModelSpec]
    sources: Callable[[ModelSpec, Collection[str]], Sources]  # given the names of the checkpoint's tensors
    ignored: tuple[str, ...] = ()  # beginnings of names of tensors that carry nothing, or nothing for a text model


def describe(checkpoint: Checkpoint) -> tuple[ModelSpec, Weights]:
    """Spec and weights of a checkpoint. Raises CheckpointError, ConfigError and TensorError."""
    key = (checkpoint.format, checkpoint.architecture)
    if key not in ARCHITECTURES:
        known = ", ".join(f"{name} ({form})" for form, name in ARCHITECTURES)
        raise CheckpointError(
            f"{checkpoint.path}: architecture {shown(checkpoint.architecture)} in {checkpoint.format} is not "
            f"supported; supported: {known}; others may go through optimum-intel, with --frontend optimum"
        )
    architecture = ARCHITECTURES[key]
    spec = architecture.read_spec(checkpoint)
    _check(spec, checkpoint)
    return spec, map_names(checkpoint, spec, architecture.sources(spec, checkpoint.shapes), architecture.ignored)


def doubts(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    """What a checkpoint leaves out or says that is known to be said wrongly elsewhere; export goes on and warns."""
    found = []
    if tower := sum(name.startswith(VISION) for name in checkpoint.shapes):
        found.append(f"the image tower ({tower} tensors) is left out; the bundle answers to text alone")
    found += _lost_rope_base(checkpoint, spec)
    found += _strange_rotary_dim(spec)
    return tuple(found)


def _lost_rope_base(checkpoint: Checkpoint, spec: ModelSpec) -> list[str]:
    """The conversion of glm-4-9b-chat to GlmForCausalLM looked up rope_ratio in a dict with getattr and so lost it
    (huggingface/transformers, models/glm/convert_glm_weights_to_hf.py at eaed17f); the original multiplies by it.
    llama.cpp's conversion reads rope_ratio and seq_length, which GlmForCausalLM's config does not have, and writes
    10000 and the hidden size in their place (ggml-org/llama.cpp, conversion/chatglm.py).
    """
    original = {131072: ("glm-4-9b-chat", 5_000_000), 1048576: ("glm-4-9b-chat-1m", 100_000_000)}
    if spec.vocab_size != GLM4_VOCABULARY or spec.rope_theta != 10_000:
        return []
    if spec.architecture == "glm" and spec.max_position_embeddings in original:
        name, theta = original[spec.max_position_embeddings]
        return [
            f"rope_theta is 10000 for a context of {spec.max_position_embeddings}, as in the published conversion of "
            f"{name}, whose original has {theta}; if this is that model, export it with --rope-theta {theta}"
        ]
    if checkpoint.format == "gguf" and spec.max_position_embeddings == spec.hidden_size:
        return [
            f"rope base 10000 and a context of {spec.hidden_size}, the hidden size, are what llama.cpp writes where a "
            "config does not say; if this is glm-4-9b-chat, export it with --rope-theta 5000000 (1M: 100000000)"
        ]
    return []


def _strange_rotary_dim(spec: ModelSpec) -> list[str]:
    """llama.cpp's conversion of GLM-4-0414 once wrote the whole head as rope.dimension_count, of which half rotates
    (ggml-org/llama.cpp, pull request 12957).
    """
    half, whole = spec.head_dim // 2, spec.head_dim
    known: tuple[int, ...]
    if spec.architecture == "llama":
        known, models = (whole,), "llama"
    elif spec.architecture == "glm4":
        known, models = (half,), "GLM-4-0414"
    elif spec.vocab_size == GLM4_VOCABULARY:
        known, models = (half,), "GLM-4"
    else:  # GLM-Edge rotates the whole head
        known, models = (half, whole), "GLM-4 and GLM-Edge"
    if spec.rotary_dim in known:
        return []
    return [
        f"{spec.rotary_dim} of {whole} head dims rotate, where every published {models} model rotates "
        f"{' or '.join(map(str, known))}; if this is one of them, export it with --rotary-dim {known[0]}"
    ]


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
    return _sources(spec, outside, "model.layers.{}.", block)


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
    return _sources(spec, outside, "transformer.encoder.layers.{}.", block)


def _gguf_spec(checkpoint: Checkpoint) -> ModelSpec:
    """llama, chatglm and glm4 in GGUF: rows of q and k are in GLM's interleaved rotary layout in all three."""
    config, name = checkpoint.config, checkpoint.architecture
    config.require(f"{name}.rope.scaling.type", "none")
    config.require(f"{name}.rope.dimension_sections")  # GLM-4.1V, whose q and k rows are in another order
    config.require(f"{name}.expert_count", 0)
    config.require(f"{name}.nextn_predict_layers", 0)
    num_heads = config.positive(f"{name}.attention.head_count")
    hidden_size = config.positive(f"{name}.embedding_length")
    head_dim = config.positive(f"{name}.attention.key_length", default=hidden_size // num_heads)
    rotary_dim = head_dim if name == "llama" else head_dim // 2
    return ModelSpec(
        architecture=name,
        num_layers=config.positive(f"{name}.block_count"),
        hidden_size=hidden_size,
        intermediate_size=config.positive(f"{name}.feed_forward_length"),
        num_heads=num_heads,
        num_kv_heads=config.positive(f"{name}.attention.head_count_kv", default=num_heads),
        head_dim=head_dim,
        rotary_dim=config.positive(f"{name}.rope.dimension_count", default=rotary_dim),
        rope_theta=config.read(float, f"{name}.rope.freq_base", default=10000.0),
        rms_norm_eps=config.read(float, f"{name}.attention.layer_norm_rms_epsilon"),
        vocab_size=_rows(checkpoint, "token_embd.weight") or config.positive(f"{name}.vocab_size"),
        max_position_embeddings=config.positive(f"{name}.context_length"),
        qkv_bias=bool({"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} & checkpoint.shapes.keys()),
        tied_embeddings="output.weight" not in checkpoint.shapes,
        output_norms=name == "glm4",
    )


def _rows(checkpoint: Checkpoint, name: str) -> int:
    """Of a matrix; 0 where the tensor is not there or has none."""
    shape = checkpoint.shapes.get(name, ())
    return shape[0] if shape else 0


def _gguf_sources(spec: ModelSpec, names: Collection[str]) -> Sources:
    """q, k and v, and gate and up, stand together or apart, as the model they come from had them."""
    together = "blk.0.attn_qkv.weight" in names
    qkv = ("attn_qkv",) if together else ("attn_q", "attn_k", "attn_v")
    gate_up = ("ffn_gate.weight", "ffn_up.weight") if "blk.0.ffn_gate.weight" in names else ("ffn_up.weight",)
    block = {
        "input_norm.weight": ("attn_norm.weight",),
        "attn.qkv.weight": tuple(f"{x}.weight" for x in qkv),
        "attn.qkv.bias": tuple(f"{x}.bias" for x in qkv),
        "attn.o.weight": ("attn_output.weight",),
        "attn.out_norm.weight": ("post_attention_norm.weight",),
        "post_norm.weight": ("ffn_norm.weight",),
        "mlp.gate_up.weight": gate_up,
        "mlp.down.weight": ("ffn_down.weight",),
        "mlp.out_norm.weight": ("post_ffw_norm.weight",),
    }
    outside = {
        "embed.weight": "token_embd.weight",
        "norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    return _sources(spec, outside, "blk.{}.", block)


def _sources(
    spec: ModelSpec, outside: Mapping[str, str], prefix: str, block: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """The whole table: `block` for every layer, without what this model does not have."""
    absent = set() if spec.qkv_bias else {"attn.qkv.bias"}
    absent |= set() if spec.output_norms else {"attn.out_norm.weight", "mlp.out_norm.weight"}
    absent |= {"lm_head.weight"} if spec.tied_embeddings else set()
    sources: dict[str, tuple[str, ...]] = {name: (source,) for name, source in outside.items() if name not in absent}
    for layer in range(spec.num_layers):
        theirs = prefix.format(layer)
        sources |= {
            f"layers.{layer}.{name}": tuple(theirs + part for part in parts)
            for name, parts in block.items()
            if name not in absent
        }
    return sources


def _check(spec: ModelSpec, checkpoint: Checkpoint) -> None:
    origin = checkpoint.config.origin
    if spec.num_layers > len(checkpoint.shapes):  # before names are made for them all
        raise ConfigError(
            f"{origin}: {spec.num_layers} layers, and the checkpoint has {len(checkpoint.shapes)} tensors; it is "
            "incomplete, or its config is another model's; download it again"
        )
    if spec.num_heads % spec.num_kv_heads:
        raise ConfigError(f"{origin}: {spec.num_heads} heads cannot share {spec.num_kv_heads} KV heads evenly")
    if not can_rotate(spec.rotary_dim, spec.head_dim):
        raise ConfigError(
            f"{origin}: {spec.rotary_dim} of {spec.head_dim} head dims rotate, expected an even part of them"
        )
    if not 0 < spec.rope_theta < math.inf or not 0 < spec.rms_norm_eps < 1:
        raise ConfigError(
            f"{origin}: rope theta {spec.rope_theta} and norm eps {spec.rms_norm_eps}, expected a base above 0 and an "
            "eps between 0 and 1"
        )


def can_rotate(rotary_dim: int, head_dim: int) -> bool:
    """Whether so many leading dims of a head can rotate: in pairs, and no more than there are."""
    return 2 <= rotary_dim <= head_dim and rotary_dim % 2 == 0


_TIED_COPY = ("lm_head.weight",)  # some files store a tied head a second time

ARCHITECTURES: dict[tuple[Format, str], Architecture] = {
    ("safetensors", "chatglm"): Architecture(
        _chatglm_spec, _chatglm_sources, (VISION, "transformer.rotary_pos_emb.inv_freq")
    ),
    ("safetensors", "glm"): Architecture(_glm_spec, _glm_sources, _TIED_COPY),
    ("safetensors", "glm4"): Architecture(_glm_spec, _glm_sources, _TIED_COPY),
    ("gguf", "llama"): Architecture(_gguf_spec, _gguf_sources),
    ("gguf", "chatglm"): Architecture(_gguf_spec, _gguf_sources),
    ("gguf", "glm4"): Architecture(_gguf_spec, _gguf_sources),
}
