"""Small bundles that the NPU plugin accepts: six blocks, widths of 64 or more, symmetric integers of 4 bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edge.export.pipeline import export
from tests.conftest import made_once
from tests.tiny import Tiny, make

GLM = Tiny(
    "npu-glm",
    hidden_size=256,
    intermediate_size=512,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    max_position_embeddings=512,
    num_layers=6,
    spread=0.075,  # as 0.15 with a quarter of the width; with 0.15, float32 engines are 2e-5 apart
)
MODELS = {"glm": GLM, "glm4": replace(GLM, name="npu-0414", architecture="glm4")}
RECIPES = ("int4-sym-channel", "int4-sym-g128")
BUNDLES = [f"{model}-{recipe}" for model in MODELS for recipe in RECIPES]


def npu_bundle(name: str, factory: pytest.TempPathFactory) -> Path:
    """One of BUNDLES, made once a run."""
    model, recipe = name.split("-", 1)
    checkpoint = made_once(factory, f"npu-{model}", lambda out: make(MODELS[model], out))
    return made_once(factory, f"npu-{name}", lambda out: export(checkpoint, out, recipe))
