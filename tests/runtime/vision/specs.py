"""Records of both kinds of tower, as the published checkpoints have them where pixels and places are concerned."""

from __future__ import annotations

from dataclasses import replace

from edge.runtime.vision.spec import VisionSpec

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

EVA = VisionSpec(
    kind="eva",
    num_layers=63,
    hidden_size=1792,
    intermediate_size=15360,
    num_heads=16,
    norm_eps=1e-6,
    patch_size=14,
    frames=1,
    image_size=1120,
    merge_size=2,
    out_size=4096,
    merger_size=13696,
    merger_eps=1e-5,
    scale=8.0,
    mean=MEAN,
    std=STD,
    min_pixels=0,
    max_pixels=0,
    begin_id=151339,
    placeholder_id=151329,
    end_id=151340,
    max_pictures=1,
)
GLM4V = replace(
    EVA,
    kind="glm4v",
    num_layers=24,
    hidden_size=1536,
    intermediate_size=4096,
    num_heads=12,
    norm_eps=1e-5,
    frames=2,
    image_size=336,
    scale=1.0,
    min_pixels=112 * 112,
    max_pixels=9_633_792,
    placeholder_id=151343,
    max_pictures=0,
)
