"""PEFT adapters: adapter_config.json; the tensors stay what they are, for their reader has a target of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from edge.export.architectures.architecture import GLM_LAYOUT
from edge.export.weights.adapter import CONFIG, TENSORS, Adapter
from edge.runtime.spec import ModelSpec
from tests.fuzz.target import Target

CONFIGS = (
    {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_rslora": True, "use_dora": False,
        "target_modules": ["q_proj", "v_proj"], "modules_to_save": None, "init_lora_weights": True,
        "rank_pattern": {"down_proj": 2, "layers\\.1\\..*": 4}, "alpha_pattern": {"(k|q)_proj": 3.5, ".*[0-9]{1,2}": 8},
    },
    {"peft_type": "LORA", "r": 4, "lora_alpha": 16.0, "target_modules": ".*(q|v)_proj", "fan_in_fan_out": False},
)  # fmt: skip


SPEC = ModelSpec(
    architecture="glm", num_layers=2, hidden_size=8, intermediate_size=16, num_heads=2, num_kv_heads=1, head_dim=4,
    rotary_dim=2, rope_theta=10000.0, rms_norm_eps=1e-5, vocab_size=32, max_position_embeddings=64, qkv_bias=True,
    tied_embeddings=True, output_norms=False,
)  # fmt: skip


def _seeds(folder: Path) -> list[bytes]:
    spec = SPEC
    (folder / "adapter").mkdir()
    tensors = {}
    for module, rows in (("q_proj", spec.q_size), ("v_proj", spec.kv_size)):
        name = f"base_model.model.model.layers.0.self_attn.{module}.lora_"
        tensors[f"{name}A.weight"] = np.ones((4, spec.hidden_size), np.float32)
        tensors[f"{name}B.weight"] = np.ones((rows, 4), np.float32)
    save_file(tensors, folder / "adapter" / TENSORS)
    return [json.dumps(config).encode() for config in CONFIGS]


def _read(raw: bytes, folder: Path) -> object:
    (folder / "adapter" / CONFIG).write_bytes(raw)
    adapter = Adapter(folder / "adapter", SPEC, GLM_LAYOUT)
    return [adapter.delta(name) for name in adapter.touched]


TARGETS = (
    Target(
        "adapter",
        _seeds,
        _read,
        "json",
        (b"(.*)*x", b"(a+)+$", b'"rank_pattern": {"(q|v)*": 4}', b"{999}", b'"r": 4', b"(?=", b"[^"),
    ),
)
