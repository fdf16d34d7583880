"""Glm4vForConditionalGeneration as transformers stores it: GLM-4.1V-9B-Thinking and GLM-4.6V-Flash.

The text model is that of GLM-4-0414, with a rotary angle of three positions. Its configuration is in text_config, or
beside vision_config in older files.

Source: models/glm4v/{configuration,modeling,image_processing}_glm4v.py of huggingface/transformers 4.57.6.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from edge.export.architectures.architecture import GLM_LAYOUT, Architecture, Tower
from edge.export.architectures.transformers import joined_sources, read_spec
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.export.checkpoint.fields import Fields
from edge.export.vision.source import Part, Parts
from edge.export.weights.names import Sources
from edge.runtime.errors import ConfigError, shown
from edge.runtime.spec import ModelSpec
from edge.runtime.vision.spec import VisionSpec

PREFIX = "model.visual."
ADAPTER_EPS = 1e-5  # of torch's LayerNorm, which the merger leaves as it is
TEXT_PREFIX = ("model.", "model.language_model.")  # of a text model's names, and of the same in this one
RESCALED, BICUBIC = 1 / 255, 3


def _text_spec(checkpoint: Checkpoint) -> ModelSpec:
    config = checkpoint.config
    text = config.within("text_config") if config.find("text_config") is not None else config
    sections = _sections(text)
    spec = read_spec(
        checkpoint,
        qkv_bias=True,  # whatever attention_bias says: the code has them
        rotary_part=0.5,
        output_norms=True,
        config=text,
        rope_sections=sections,
    )
    if len(sections) != 3 or sum(sections) != spec.rotary_dim // 2:
        raise ConfigError(
            f"{config.origin}: mrope_section is {shown(list(sections))}, expected three numbers that add up to "
            f"{spec.rotary_dim // 2}, half of the {spec.rotary_dim} dims that rotate"
        )
    return spec


def _sections(text: Fields) -> tuple[int, ...]:
    """How many frequencies turn by each of a token's positions."""
    for key in ("rope_parameters.mrope_section", "rope_scaling.mrope_section"):
        value = text.find(key)
        if isinstance(value, list) and all(type(size) is int and size > 0 for size in value):
            return tuple(value)
        if value is not None:
            raise ConfigError(f"{text.origin}: {key} is {shown(value)}, expected three whole numbers like 8, 12, 12")
    raise ConfigError(f"{text.origin}: rope_scaling.mrope_section is missing, expected three numbers like 8, 12, 12")


def _text_sources(spec: ModelSpec, names: Collection[str]) -> Sources:
    old, new = TEXT_PREFIX
    return {
        name: tuple(new + part.removeprefix(old) if part.startswith(old) else part for part in parts)
        for name, parts in joined_sources(spec, names).items()
    }


def _tower_spec(checkpoint: Checkpoint, text: ModelSpec) -> VisionSpec:
    """The tower, its pixels, and the tokens around its rows. Raises ConfigError.

    MLPs of the layers are as wide as out_hidden_size, and the merger as intermediate_size: the names lie.
    """
    config = checkpoint.config
    vision = config.within("vision_config")
    vision.require("hidden_act", "silu")
    vision.require("in_channels", 3)
    vision.require("attention_bias", False)
    out = vision.positive("out_hidden_size")
    if out != text.hidden_size:
        raise ConfigError(
            f"{vision.origin}: out_hidden_size is {out}, and the text model's hidden_size {text.hidden_size}"
        )
    pixels = checkpoint.picture_config()
    pixels.require("rescale_factor", RESCALED)
    pixels.require("resample", BICUBIC)
    for key in ("do_rescale", "do_resize", "do_normalize", "do_convert_rgb"):
        pixels.require(key, True)
    patch, frames = vision.positive("patch_size"), vision.positive("temporal_patch_size", default=2)
    merge = vision.positive("spatial_merge_size", default=2)
    for key, value in (("patch_size", patch), ("temporal_patch_size", frames), ("merge_size", merge)):
        pixels.require(key, value)
    return VisionSpec(
        kind="glm4v",
        num_layers=vision.positive("depth"),
        hidden_size=vision.positive("hidden_size"),
        intermediate_size=out,
        num_heads=vision.positive("num_heads"),
        norm_eps=vision.read(float, "rms_norm_eps", default=1e-5),
        patch_size=patch,
        frames=frames,
        image_size=vision.positive("image_size"),
        merge_size=merge,
        out_size=out,
        merger_size=vision.positive("intermediate_size"),
        merger_eps=ADAPTER_EPS,
        scale=1.0,
        mean=_colours(pixels, "image_mean"),
        std=_colours(pixels, "image_std"),
        min_pixels=pixels.positive("size.shortest_edge"),
        max_pixels=pixels.positive("size.longest_edge"),
        begin_id=config.read(int, "image_start_token_id", default=151339),
        placeholder_id=config.read(int, "image_token_id", default=151343),
        end_id=config.read(int, "image_end_token_id", default=151340),
        max_pictures=0,
    )


def _colours(pixels: Fields, key: str) -> tuple[float, ...]:
    value = pixels.find(key)
    if not isinstance(value, list) or len(value) != 3 or any(type(number) not in (int, float) for number in value):
        raise ConfigError(f"{pixels.origin}: {key} is {shown(value)}, expected three numbers, of red, green and blue")
    return tuple(map(float, value))


def _tower_parts(spec: VisionSpec) -> Parts:
    h, f, out, merger, p = spec.hidden_size, spec.intermediate_size, spec.out_size, spec.merger_size, spec.patch_size
    layer: Mapping[str, tuple[tuple[str, tuple[int, ...]], ...]] = {
        "attn_norm.weight": (("norm1.weight", (h,)),),
        "attn.qkv.weight": (("attn.qkv.weight", (3 * h, h)),),
        "attn.o.weight": (("attn.proj.weight", (h, h)),),
        "mlp_norm.weight": (("norm2.weight", (h,)),),
        "mlp.gate_up.weight": (("mlp.gate_proj.weight", (f, h)), ("mlp.up_proj.weight", (f, h))),
        "mlp.down.weight": (("mlp.down_proj.weight", (h, f)),),
    }
    outside: Mapping[str, tuple[tuple[str, tuple[int, ...]], ...]] = {
        "vision.patches.weight": (("patch_embed.proj.weight", (h, 3, spec.frames, p, p)),),
        "vision.patches.bias": (("patch_embed.proj.bias", (h,)),),
        "vision.patches_norm.weight": (("post_conv_layernorm.weight", (h,)),),
        "vision.places.weight": (("embeddings.position_embedding.weight", (spec.side**2, h)),),
        "vision.norm.weight": (("post_layernorm.weight", (h,)),),
        "vision.merge.weight": (("downsample.weight", (out, h, spec.merge_size, spec.merge_size)),),
        "vision.merge.bias": (("downsample.bias", (out,)),),
        "vision.adapter.proj.weight": (("merger.proj.weight", (out, out)),),
        "vision.adapter.norm.weight": (("merger.post_projection_norm.weight", (out,)),),
        "vision.adapter.norm.bias": (("merger.post_projection_norm.bias", (out,)),),
        "vision.adapter.gate_up.weight": (
            ("merger.gate_proj.weight", (merger, out)),
            ("merger.up_proj.weight", (merger, out)),
        ),
        "vision.adapter.down.weight": (("merger.down_proj.weight", (out, merger)),),
    }
    made = dict(outside)
    for index in range(spec.num_layers):
        made |= {
            f"vision.layers.{index}.{name}": tuple((f"blocks.{index}.{part}", shape) for part, shape in theirs)
            for name, theirs in layer.items()
        }
    return {name: tuple(Part(PREFIX + part, shape) for part, shape in theirs) for name, theirs in made.items()}


GLM4V = Architecture(
    _text_spec,
    _text_sources,
    GLM_LAYOUT,
    "glm4",
    "Glm4ForCausalLM",
    ignored=(PREFIX,),
    tower=Tower(PREFIX, _tower_spec, _tower_parts),
)
