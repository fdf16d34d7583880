"""Towers with random weights: by the names of the original checkpoints, and as the product's graphs know them.

The names and what becomes of them are written here once more, without a look at the product's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from edge.export.tensors import Weight
from edge.runtime.vision.spec import VisionSpec

EVA, GLM4V = "transformer.vision.", "model.visual."
SPREAD, SMALL = 0.15, 3e-4  # of a matrix's numbers; in front of norms, small ones make eps visible
Tensors = Mapping[str, torch.Tensor]


def eva_spec(**other: Any) -> VisionSpec:  # Any: values of any field
    """A tower like GLM-4V-9B's, of 6 x 6 patches."""
    fields = {"kind": "eva", "num_layers": 3, "hidden_size": 48, "intermediate_size": 96, "num_heads": 3}
    fields |= {"norm_eps": 1e-6, "patch_size": 4, "frames": 1, "image_size": 24, "merge_size": 2, "out_size": 64}
    fields |= {
        "merger_size": 96,
        "merger_eps": 1e-5,
        "scale": 8.0,
        "mean": (0.48, 0.46, 0.41),
        "std": (0.27, 0.26, 0.28),
    }
    fields |= {"min_pixels": 0, "max_pixels": 0, "begin_id": 1, "placeholder_id": 2, "end_id": 3, "max_pictures": 1}
    return VisionSpec(**{**fields, **other})


def glm4v_spec(**other: Any) -> VisionSpec:  # Any: values of any field
    """A tower like GLM-4.1V's, whose places were learned on 5 x 5 patches."""
    fields = {"kind": "glm4v", "norm_eps": 1e-5, "frames": 2, "image_size": 40, "patch_size": 4, "scale": 1.0}
    fields |= {"intermediate_size": 64, "min_pixels": 1, "max_pixels": 1 << 20, "max_pictures": 0}
    return eva_spec(**{**fields, **other})


def eva_tensors(spec: VisionSpec, before_norms: float = SPREAD, seed: int = 5) -> dict[str, torch.Tensor]:
    """before_norms: how large the numbers are that norms are given."""
    h, o, f, p = spec.hidden_size, spec.out_size, spec.intermediate_size, spec.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.proj.weight": (h, 3, p, p),
        "patch_embedding.proj.bias": (h,),
        "patch_embedding.cls_embedding": (1, h),
        "patch_embedding.position_embedding.weight": (spec.side**2 + 1, h),
        "conv.weight": (o, h, 2, 2),
        "conv.bias": (o,),
        "linear_proj.linear_proj.weight": (o, o),
        "linear_proj.norm1.weight": (o,),
        "linear_proj.norm1.bias": (o,),
        "linear_proj.gate_proj.weight": (spec.merger_size, o),
        "linear_proj.dense_h_to_4h.weight": (spec.merger_size, o),
        "linear_proj.dense_4h_to_h.weight": (o, spec.merger_size),
        "boi": (1, 1, o),
        "eoi": (1, 1, o),
    }
    for index in range(spec.num_layers):
        prefix = f"transformer.layers.{index}."
        for name, n, k in (
            ("attention.query_key_value", 3 * h, h),
            ("attention.dense", h, h),
            ("mlp.fc1", f, h),
            ("mlp.fc2", h, f),
        ):
            shapes |= {f"{prefix}{name}.weight": (n, k), f"{prefix}{name}.bias": (n,)}
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{prefix}{name}.weight": (h,), f"{prefix}{name}.bias": (h,)}
    in_front = (
        "attention.dense.weight",
        "attention.dense.bias",
        "mlp.fc2.weight",
        "mlp.fc2.bias",
        "linear_proj.weight",
    )
    found = _drawn({EVA + name: shape for name, shape in shapes.items()}, seed, ("layernorm.weight", "norm1.weight"))
    return {name: t * (before_norms / SPREAD) if name.endswith(in_front) else t for name, t in found.items()}


def glm4v_tensors(spec: VisionSpec, before_norms: float = SPREAD, seed: int = 6) -> dict[str, torch.Tensor]:
    h, o, f, p = spec.hidden_size, spec.out_size, spec.intermediate_size, spec.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (h, 3, spec.frames, p, p),
        "patch_embed.proj.bias": (h,),
        "embeddings.position_embedding.weight": (spec.side**2, h),
        "post_conv_layernorm.weight": (h,),
        "post_layernorm.weight": (h,),
        "downsample.weight": (o, h, 2, 2),
        "downsample.bias": (o,),
        "merger.proj.weight": (o, o),
        "merger.post_projection_norm.weight": (o,),
        "merger.post_projection_norm.bias": (o,),
        "merger.gate_proj.weight": (spec.merger_size, o),
        "merger.up_proj.weight": (spec.merger_size, o),
        "merger.down_proj.weight": (o, spec.merger_size),
    }
    for index in range(spec.num_layers):
        prefix = f"blocks.{index}."
        shapes |= {f"{prefix}norm1.weight": (h,), f"{prefix}norm2.weight": (h,)}
        shapes |= {f"{prefix}attn.qkv.weight": (3 * h, h), f"{prefix}attn.proj.weight": (h, h)}
        shapes |= {f"{prefix}mlp.gate_proj.weight": (f, h), f"{prefix}mlp.up_proj.weight": (f, h)}
        shapes |= {f"{prefix}mlp.down_proj.weight": (h, f)}
    found = _drawn(
        {GLM4V + name: shape for name, shape in shapes.items()}, seed, ("norm1.weight", "norm2.weight", "norm.weight")
    )
    in_front = ("patch_embed.proj.weight", "patch_embed.proj.bias", "merger.proj.weight")
    return {name: t * (before_norms / SPREAD) if name.endswith(in_front) else t for name, t in found.items()}


def canonical(w: Tensors, spec: VisionSpec) -> dict[str, Weight]:
    """The tensors as the product's graphs know them, in float32."""
    prefix = EVA if spec.kind == "eva" else GLM4V
    given = {name.removeprefix(prefix): t.float() for name, t in w.items()}
    eva, found = spec.kind == "eva", {}
    conv, table = (
        ("patch_embedding.proj", "patch_embedding.position_embedding")
        if eva
        else ("patch_embed.proj", "embeddings.position_embedding")
    )
    merge, adapter = ("conv", "linear_proj") if eva else ("downsample", "merger")
    proj, norm = (
        (f"{adapter}.linear_proj", f"{adapter}.norm1")
        if eva
        else (f"{adapter}.proj", f"{adapter}.post_projection_norm")
    )
    gate, up, down = ("gate_proj", "dense_h_to_4h", "dense_4h_to_h") if eva else ("gate_proj", "up_proj", "down_proj")
    found["vision.patches.weight"] = given[f"{conv}.weight"].flatten(1)
    found["vision.patches.bias"] = given[f"{conv}.bias"]
    found["vision.places.weight"] = given[f"{table}.weight"]
    found["vision.merge.weight"] = given[f"{merge}.weight"].flatten(1)
    found["vision.merge.bias"] = given[f"{merge}.bias"]
    found["vision.adapter.proj.weight"] = given[f"{proj}.weight"]
    for kind in ("weight", "bias"):
        found[f"vision.adapter.norm.{kind}"] = given[f"{norm}.{kind}"]
    found["vision.adapter.gate_up.weight"] = torch.cat([given[f"{adapter}.{part}.weight"] for part in (gate, up)])
    found["vision.adapter.down.weight"] = given[f"{adapter}.{down}.weight"]
    if eva:
        found["vision.cls"] = given["patch_embedding.cls_embedding"]
        found["vision.begin"], found["vision.end"] = given["boi"][0], given["eoi"][0]
    else:
        found["vision.patches_norm.weight"] = given["post_conv_layernorm.weight"]
        found["vision.norm.weight"] = given["post_layernorm.weight"]
    for index in range(spec.num_layers):
        ours = f"vision.layers.{index}."
        if eva:
            theirs = f"transformer.layers.{index}."
            names = {
                "attention.query_key_value": "attn.qkv",
                "attention.dense": "attn.o",
                "input_layernorm": "attn_norm",
            }
            names |= {"post_attention_layernorm": "mlp_norm", "mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down"}
            for kind in ("weight", "bias"):
                found |= {f"{ours}{new}.{kind}": given[f"{theirs}{old}.{kind}"] for old, new in names.items()}
        else:
            theirs = f"blocks.{index}."
            names = {"attn.qkv": "attn.qkv", "attn.proj": "attn.o", "norm1": "attn_norm", "norm2": "mlp_norm"}
            names |= {"mlp.down_proj": "mlp.down"}
            found |= {f"{ours}{new}.weight": given[f"{theirs}{old}.weight"] for old, new in names.items()}
            both = [given[f"{theirs}mlp.{part}_proj.weight"] for part in ("gate", "up")]
            found[f"{ours}mlp.gate_up.weight"] = torch.cat(both)
    return {name: np.ascontiguousarray(t.numpy()) for name, t in found.items()}


def _drawn(shapes: Mapping[str, tuple[int, ...]], seed: int, ones: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Random float64 tensors, which float32 holds exactly; those whose name ends with `ones` are around 1."""
    random = torch.Generator().manual_seed(seed)
    drawn = {name: SPREAD * torch.randn(shape, generator=random) for name, shape in shapes.items()}
    return {name: (t + 1 if name.endswith(ones) else t).float().double() for name, t in drawn.items()}
