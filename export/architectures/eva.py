"""The picture tower of GLM-4V-9B, in its remote-code layout.

Source: configuration_chatglm.py, modeling_chatglm.py and visual.py of THUDM/glm-4v-9b. Its config says nothing of
colours: mean and deviation are those of CLIP, which the tokenizer's code has.
"""

from __future__ import annotations

from edge.export.architectures.architecture import Tower
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.export.vision.source import Part, Parts
from edge.runtime.errors import ConfigError
from edge.runtime.spec import ModelSpec
from edge.runtime.vision.spec import VisionSpec

PREFIX = "transformer.vision."
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ADAPTER_EPS = 1e-5  # of torch's LayerNorm, which the adapter leaves as it is; the tower's own is in the config
MERGE = 2  # patches of a side that one step of the convolution covers


def read_spec(checkpoint: Checkpoint, text: ModelSpec) -> VisionSpec:
    """The tower, and the tokens around its rows. Raises ConfigError."""
    config = checkpoint.config
    config.require("vision_config.hidden_act", "gelu")
    config.require("vision_config.in_channels", 3)
    spec = VisionSpec(
        kind="eva",
        num_layers=config.positive("vision_config.num_hidden_layers"),
        hidden_size=config.positive("vision_config.hidden_size"),
        intermediate_size=config.positive("vision_config.intermediate_size"),
        num_heads=config.positive("vision_config.num_heads"),
        norm_eps=config.read(float, "vision_config.layer_norm_eps"),
        patch_size=config.positive("vision_config.patch_size"),
        frames=1,
        image_size=config.positive("vision_config.image_size"),
        merge_size=MERGE,
        out_size=text.hidden_size,
        merger_size=text.intermediate_size,
        merger_eps=ADAPTER_EPS,
        scale=config.read(float, "vision_config.scaling_factor"),
        mean=MEAN,
        std=STD,
        min_pixels=0,
        max_pixels=0,
        begin_id=config.read(int, "boi_token_id"),
        placeholder_id=config.read(int, "pad_token_id"),
        end_id=config.read(int, "eoi_token_id"),
        max_pictures=1,
    )
    places = config.positive("vision_config.num_positions")
    if spec.side**2 + 1 != places:
        raise ConfigError(
            f"{config.origin}: vision_config.num_positions is {places}, and an image_size of {spec.image_size} with "
            f"patches of {spec.patch_size} pixels has {spec.side**2 + 1}; download it again"
        )
    return spec


def parts(spec: VisionSpec) -> Parts:
    """Where each canonical weight is; the norms' names lie about their place, which is after the sublayer."""
    h, f, out, merger, p = spec.hidden_size, spec.intermediate_size, spec.out_size, spec.merger_size, spec.patch_size
    layer = {
        "attn.qkv.weight": ("attention.query_key_value.weight", (3 * h, h)),
        "attn.qkv.bias": ("attention.query_key_value.bias", (3 * h,)),
        "attn.o.weight": ("attention.dense.weight", (h, h)),
        "attn.o.bias": ("attention.dense.bias", (h,)),
        "attn_norm.weight": ("input_layernorm.weight", (h,)),
        "attn_norm.bias": ("input_layernorm.bias", (h,)),
        "mlp.up.weight": ("mlp.fc1.weight", (f, h)),
        "mlp.up.bias": ("mlp.fc1.bias", (f,)),
        "mlp.down.weight": ("mlp.fc2.weight", (h, f)),
        "mlp.down.bias": ("mlp.fc2.bias", (h,)),
        "mlp_norm.weight": ("post_attention_layernorm.weight", (h,)),
        "mlp_norm.bias": ("post_attention_layernorm.bias", (h,)),
    }
    outside: dict[str, tuple[tuple[str, tuple[int, ...]], ...]] = {
        "vision.patches.weight": (("patch_embedding.proj.weight", (h, 3, p, p)),),
        "vision.patches.bias": (("patch_embedding.proj.bias", (h,)),),
        "vision.cls": (("patch_embedding.cls_embedding", (1, h)),),
        "vision.places.weight": (("patch_embedding.position_embedding.weight", (spec.side**2 + 1, h)),),
        "vision.merge.weight": (("conv.weight", (out, h, spec.merge_size, spec.merge_size)),),
        "vision.merge.bias": (("conv.bias", (out,)),),
        "vision.adapter.proj.weight": (("linear_proj.linear_proj.weight", (out, out)),),
        "vision.adapter.norm.weight": (("linear_proj.norm1.weight", (out,)),),
        "vision.adapter.norm.bias": (("linear_proj.norm1.bias", (out,)),),
        "vision.adapter.gate_up.weight": (
            ("linear_proj.gate_proj.weight", (merger, out)),
            ("linear_proj.dense_h_to_4h.weight", (merger, out)),
        ),
        "vision.adapter.down.weight": (("linear_proj.dense_4h_to_h.weight", (out, merger)),),
        "vision.begin": (("boi", (1, 1, out)),),
        "vision.end": (("eoi", (1, 1, out)),),
    }
    found = {name: tuple(Part(PREFIX + part, shape) for part, shape in made) for name, made in outside.items()}
    for index in range(spec.num_layers):
        theirs = f"{PREFIX}transformer.layers.{index}."
        found |= {
            f"vision.layers.{index}.{name}": (Part(theirs + part, shape),) for name, (part, shape) in layer.items()
        }
    return found


EVA = Tower(PREFIX, read_spec, parts)
