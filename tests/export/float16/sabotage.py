"""Checkpoints made to pass the end of float16 without a change to what they compute in float32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from tests.tiny import Tiny

Tensors = dict[str, npt.NDArray[np.float32]]
BLOCK = "model.layers.1."
MODEL = Tiny("float16", intermediate_size=256)


def up(tensors: Tensors, power: int = 17) -> int:
    """The up branch of a block is larger, and what follows it smaller. Returns the power of the residual stream."""
    gate_up = tensors[f"{BLOCK}mlp.gate_up_proj.weight"]
    gate_up[len(gate_up) // 2 :] *= np.float32(2.0**power)
    tensors[f"{BLOCK}mlp.down_proj.weight"] *= np.float32(2.0**-power)
    return 0


def sums(tensors: Tensors, power: int = 13) -> int:
    """A norm's output is larger, and so are sums over groups of it times integers; the matrix after it is smaller."""
    tensors[f"{BLOCK}post_attention_layernorm.weight"] *= np.float32(2.0**power)
    tensors[f"{BLOCK}mlp.gate_up_proj.weight"] *= np.float32(2.0**-power)
    return 0


def residual(tensors: Tensors, power: int = 14) -> int:
    """The residual stream is larger."""
    for name in tensors:
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            tensors[name] *= np.float32(2.0**power)
    return power


def values(tensors: Tensors, power: int = 17) -> int:
    """The values of a block are larger, and what multiplies them smaller."""
    for kind in ("weight", "bias"):
        tensors[f"{BLOCK}self_attn.v_proj.{kind}"] *= np.float32(2.0**power)
    tensors[f"{BLOCK}self_attn.o_proj.weight"] *= np.float32(2.0**-power)
    return 0


def qkv(tensors: Tensors, power: int = 13) -> int:
    """As `sums`, before attention."""
    tensors[f"{BLOCK}input_layernorm.weight"] *= np.float32(2.0**power)
    for part in "qkv":
        tensors[f"{BLOCK}self_attn.{part}_proj.weight"] *= np.float32(2.0**-power)
    return 0


def head(tensors: Tensors, power: int = 14) -> int:
    """As `sums`, before the vocabulary projection."""
    tensors["model.norm.weight"] *= np.float32(2.0**power)
    tensors["lm_head.weight"] *= np.float32(2.0**-power)
    return 0


def output(tensors: Tensors, power: int = 14) -> int:
    """What the MLPs of a GLM-4-0414 give to the norms after them is larger; the eps of all norms is next to nothing."""
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] *= np.float32(2.0**power)
    return 0


SABOTAGES: dict[str, Callable[[Tensors], int]] = {
    "up": up,
    "sums": sums,
    "residual": residual,
    "values": values,
    "qkv": qkv,
    "head": head,
}


def sabotaged(folder: Path, out: Path, sabotage: Callable[[Tensors], int]) -> Path:
    """A copy of a checkpoint in float32, made to overflow."""
    shutil.copytree(folder, out)
    tensors: Tensors = load_file(folder / "model.safetensors")
    power = sabotage(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["rms_norm_eps"] = float(np.float32(config["rms_norm_eps"]) * np.float32(4.0**power))
    (out / "config.json").write_text(json.dumps(config))
    return out
