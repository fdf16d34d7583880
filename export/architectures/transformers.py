"""What the architectures in transformers share: keys of config.json, and names of tensors.

In: an open checkpoint, and what its family says of itself. Out: a ModelSpec, and the table of weights. Knows nothing
about particular families. Keys are read where transformers 4 writes them and where transformers 5 does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from edge.export.architectures.architecture import weight_sources
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.export.checkpoint.fields import Fields
from edge.export.weights.names import Sources
from edge.runtime.errors import ConfigError, shown
from edge.runtime.spec import ModelSpec

TIED_COPY = ("lm_head.weight",)  # some files store a tied head a second time


def read_spec(
    checkpoint: Checkpoint,
    *,
    qkv_bias: bool,
    rotary_part: float | None = None,
    rope_theta: float | None = None,
    output_norms: bool = False,
    qk_norms: bool = False,
    config: Fields | None = None,
    rope_sections: tuple[int, ...] = (),
) -> ModelSpec:
    """A decoder with silu and without other biases than those of q, k and v. Raises ConfigError.

    rotary_part: how much of each head rotates where config.json does not say; None: all of it, whatever it says.
    rope_theta: the base where config.json does not say; None: it has to.
    config: the part of config.json that is about the decoder; None: all of it.
    """
    config = config or checkpoint.config
    config.require("hidden_act", "silu")
    refuse_scaled_rope(config)
    num_heads = config.positive("num_attention_heads")
    hidden_size = config.positive("hidden_size")
    head_dim = config.positive("head_dim", default=max(hidden_size // num_heads, 1))
    parts = ("rope_parameters.partial_rotary_factor", "partial_rotary_factor")
    if rotary_part is None:
        for key in parts:
            config.require(key, 1.0)
    part = config.part(*parts, default=1.0 if rotary_part is None else rotary_part)
    return ModelSpec(
        architecture=checkpoint.architecture,
        num_layers=config.positive("num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=config.positive("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=config.positive("num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        rotary_dim=int(head_dim * part),
        rope_theta=config.read(float, "rope_parameters.rope_theta", "rope_theta", default=rope_theta),
        rms_norm_eps=config.read(float, "rms_norm_eps"),
        vocab_size=config.positive("vocab_size"),
        max_position_embeddings=config.positive("max_position_embeddings"),
        qkv_bias=qkv_bias,
        tied_embeddings=config.read(bool, "tie_word_embeddings", default=False),
        output_norms=output_norms,
        qk_norms=qk_norms,
        rope_sections=rope_sections,
    )


def refuse_scaled_rope(config: Fields) -> None:
    """Raises ConfigError where positions are scaled, as for contexts longer than a model was trained with."""
    for key in ("rope_scaling", "rope_parameters"):
        value = config.find(key)
        named = value if isinstance(value, Mapping) else {}
        kind = named.get("rope_type", named.get("type", "default" if key == "rope_parameters" else None))
        if value is None or kind == "default":
            continue
        if kind == "llama3":  # trained with it, and it changes short contexts too
            advice = "export with --frontend optimum, which takes the graph of transformers"
        else:
            advice = "if the model was published without it, remove it; otherwise try --frontend optimum"
        raise ConfigError(
            f"{config.origin}: {key} is {shown(value)}, expected none: positions that are scaled as "
            f"{shown(kind) if kind else 'it says'} are not implemented; {advice}"
        )


def joined_sources(spec: ModelSpec, _names: Collection[str]) -> Sources:
    """Names of a model that stores gate and up as one matrix."""
    return _sources(spec, ("mlp.gate_up_proj.weight",))


def separate_sources(spec: ModelSpec, _names: Collection[str]) -> Sources:
    """Names of a model that stores gate and up as two matrices."""
    return _sources(spec, ("mlp.gate_proj.weight", "mlp.up_proj.weight"))


def _sources(spec: ModelSpec, gate_up: tuple[str, ...]) -> Sources:
    block = {
        "input_norm.weight": ("input_layernorm.weight",),
        "attn.qkv.weight": tuple(f"self_attn.{x}_proj.weight" for x in "qkv"),
        "attn.qkv.bias": tuple(f"self_attn.{x}_proj.bias" for x in "qkv"),
        "attn.q_norm.weight": ("self_attn.q_norm.weight",),
        "attn.k_norm.weight": ("self_attn.k_norm.weight",),
        "attn.o.weight": ("self_attn.o_proj.weight",),
        "attn.out_norm.weight": ("post_self_attn_layernorm.weight",),
        "post_norm.weight": ("post_attention_layernorm.weight",),
        "mlp.gate_up.weight": gate_up,
        "mlp.down.weight": ("mlp.down_proj.weight",),
        "mlp.out_norm.weight": ("post_mlp_layernorm.weight",),
    }
    outside = {
        "embed.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
    }
    return weight_sources(spec, outside, "model.layers.{}.", block)
