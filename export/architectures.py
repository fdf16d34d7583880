"""The architectures we map: what a config says, and where each canonical weight lies.

In: an open checkpoint. Out: its ModelSpec and the table for `names`. Adding a model is adding a record to
`ARCHITECTURES`. Knows nothing about graphs or compression.

Sources: models/glm/{configuration,modeling}_glm.py of huggingface/transformers 4.57.6; ggml-org/llama.cpp
gguf-py/gguf/constants.py for GGUF names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge.export.checkpoint import Checkpoint, Format
from edge.export.names import Sources, Weights, map_names
from edge.runtime.errors import CheckpointError, ConfigError
from edge.runtime.spec import ModelSpec


@dataclass(frozen=True)
class Architecture:
    """How one kind of checkpoint is read."""

    read_spec: Callable[[Checkpoint], ModelSpec]
    sources: Callable[[ModelSpec], Sources]
    ignored: frozenset[str] = frozenset()  # tensors that are there and carry nothing


def describe(checkpoint: Checkpoint) -> tuple[ModelSpec, Weights]:
    """Spec and weights of a checkpoint. Raises CheckpointError, ConfigError and TensorError."""
    key = (checkpoint.format, checkpoint.architecture)
    if key not in ARCHITECTURES:
        known = ", ".join(f"{name} ({form})" for form, name in ARCHITECTURES)
        raise CheckpointError(
            f"{checkpoint.path}: architecture {checkpoint.architecture!r} in {checkpoint.format} is not supported; "
            f"supported: {known}"
        )
    architecture = ARCHITECTURES[key]
    spec = architecture.read_spec(checkpoint)
    _check(spec, checkpoint)
    return spec, map_names(checkpoint, spec, architecture.sources(spec), architecture.ignored)


def doubts(spec: ModelSpec) -> tuple[str, ...]:
    """What a checkpoint says that is known to be said wrongly elsewhere; export goes on and warns.

    The conversion of glm-4-9b-chat to GlmForCausalLM looked up rope_ratio in a dict with getattr and so lost it
    (huggingface/transformers, models/glm/convert_glm_weights_to_hf.py at eaed17f); the original code multiplies by it.
    """
    original = {131072: ("glm-4-9b-chat", 5_000_000), 1048576: ("glm-4-9b-chat-1m", 100_000_000)}
    if spec.architecture != "glm" or spec.vocab_size != 151552 or spec.rope_theta != 10_000:
        return ()
    if spec.max_position_embeddings not in original:
        return ()
    name, theta = original[spec.max_position_embeddings]
    return (
        f"rope_theta is 10000 for a context of {spec.max_position_embeddings}, as in the published conversion of "
        f"{name}, whose original has {theta}; if this is that model, export it with --rope-theta {theta}",
    )


def _glm_spec(checkpoint: Checkpoint) -> ModelSpec:
    """GlmForCausalLM. transformers 5 moved rope settings into rope_parameters; both places are read."""
    config = checkpoint.config
    config.require("hidden_act", "silu")
    config.require("rope_scaling", None)
    config.require("rope_parameters.rope_type", "default")
    num_heads = config.positive("num_attention_heads")
    hidden_size = config.positive("hidden_size")
    head_dim = config.positive("head_dim", default=hidden_size // num_heads)
    rotary_part = config.read(float, "rope_parameters.partial_rotary_factor", "partial_rotary_factor", default=0.5)
    return ModelSpec(
        architecture="glm",
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
    )


def _glm_sources(spec: ModelSpec) -> Sources:
    sources: dict[str, tuple[str, ...]] = {"embed.weight": ("model.embed_tokens.weight",)}
    for layer in range(spec.num_layers):
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
        attention = f"{theirs}.self_attn"
        sources |= {
            f"{ours}.input_norm.weight": (f"{theirs}.input_layernorm.weight",),
            f"{ours}.attn.qkv.weight": tuple(f"{attention}.{x}_proj.weight" for x in "qkv"),
            f"{ours}.attn.o.weight": (f"{attention}.o_proj.weight",),
            f"{ours}.post_norm.weight": (f"{theirs}.post_attention_layernorm.weight",),
            f"{ours}.mlp.gate_up.weight": (f"{theirs}.mlp.gate_up_proj.weight",),
            f"{ours}.mlp.down.weight": (f"{theirs}.mlp.down_proj.weight",),
        }
        if spec.qkv_bias:
            sources[f"{ours}.attn.qkv.bias"] = tuple(f"{attention}.{x}_proj.bias" for x in "qkv")
    sources["norm.weight"] = ("model.norm.weight",)
    if not spec.tied_embeddings:
        sources["lm_head.weight"] = ("lm_head.weight",)
    return sources


def _gguf_llama_spec(checkpoint: Checkpoint) -> ModelSpec:
    """llama in GGUF: q and k rows are already in GLM's interleaved rotary layout."""
    config = checkpoint.config
    config.require("llama.rope.scaling.type", "none")
    config.require("llama.expert_count", 0)
    num_heads = config.positive("llama.attention.head_count")
    hidden_size = config.positive("llama.embedding_length")
    head_dim = config.positive("llama.attention.key_length", default=hidden_size // num_heads)
    return ModelSpec(
        architecture="llama",
        num_layers=config.positive("llama.block_count"),
        hidden_size=hidden_size,
        intermediate_size=config.positive("llama.feed_forward_length"),
        num_heads=num_heads,
        num_kv_heads=config.positive("llama.attention.head_count_kv", default=num_heads),
        head_dim=head_dim,
        rotary_dim=config.positive("llama.rope.dimension_count", default=head_dim),
        rope_theta=config.read(float, "llama.rope.freq_base", default=10000.0),
        rms_norm_eps=config.read(float, "llama.attention.layer_norm_rms_epsilon"),
        vocab_size=checkpoint.shapes.get("token_embd.weight", (0,))[0] or config.positive("llama.vocab_size"),
        max_position_embeddings=config.positive("llama.context_length"),
        qkv_bias="blk.0.attn_q.bias" in checkpoint.shapes,
        tied_embeddings="output.weight" not in checkpoint.shapes,
    )


def _gguf_llama_sources(spec: ModelSpec) -> Sources:
    sources: dict[str, tuple[str, ...]] = {"embed.weight": ("token_embd.weight",)}
    for layer in range(spec.num_layers):
        ours, theirs = f"layers.{layer}", f"blk.{layer}"
        sources |= {
            f"{ours}.input_norm.weight": (f"{theirs}.attn_norm.weight",),
            f"{ours}.attn.qkv.weight": tuple(f"{theirs}.attn_{x}.weight" for x in "qkv"),
            f"{ours}.attn.o.weight": (f"{theirs}.attn_output.weight",),
            f"{ours}.post_norm.weight": (f"{theirs}.ffn_norm.weight",),
            f"{ours}.mlp.gate_up.weight": (f"{theirs}.ffn_gate.weight", f"{theirs}.ffn_up.weight"),
            f"{ours}.mlp.down.weight": (f"{theirs}.ffn_down.weight",),
        }
        if spec.qkv_bias:
            sources[f"{ours}.attn.qkv.bias"] = tuple(f"{theirs}.attn_{x}.bias" for x in "qkv")
    sources["norm.weight"] = ("output_norm.weight",)
    if not spec.tied_embeddings:
        sources["lm_head.weight"] = ("output.weight",)
    return sources


def _check(spec: ModelSpec, checkpoint: Checkpoint) -> None:
    origin = checkpoint.config.origin
    if spec.num_heads % spec.num_kv_heads:
        raise ConfigError(f"{origin}: {spec.num_heads} heads cannot share {spec.num_kv_heads} KV heads evenly")
    if spec.rotary_dim < 2 or spec.rotary_dim % 2 or spec.rotary_dim > spec.head_dim:
        raise ConfigError(
            f"{origin}: {spec.rotary_dim} of {spec.head_dim} head dims rotate, expected an even part of them"
        )
    if not spec.rope_theta > 0 or not spec.rms_norm_eps > 0:
        raise ConfigError(f"{origin}: rope theta {spec.rope_theta} and norm eps {spec.rms_norm_eps} must be above 0")


_TIED_COPY = frozenset({"lm_head.weight"})  # some files store a tied head a second time

ARCHITECTURES: dict[tuple[Format, str], Architecture] = {
    ("safetensors", "glm"): Architecture(_glm_spec, _glm_sources, _TIED_COPY),
    ("gguf", "llama"): Architecture(_gguf_llama_spec, _gguf_llama_sources),
}
