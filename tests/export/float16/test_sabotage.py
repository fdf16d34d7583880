"""Checkpoints that pass the end of float16, in an emulated run: without folds, and as an export folds them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edge.export.compress.precision import Precision
from edge.export.compress.rounding import ranges, steps
from edge.export.float16.folds import FoldedWeights, Folds
from edge.export.float16.safety import fold
from edge.export.graph import decoder
from edge.export.graph.emulated import FLOAT16, FLOAT16_NORMS, FLOAT16_SUMS, EmulatedBuilder, Numerics
from edge.export.graph.numpy_builder import NumpyBuilder
from edge.export.journal import Journal
from edge.export.plan import Plan, make_plan
from edge.export.settings import ExportSettings
from edge.export.tensors import Float32Array, PackedTensor, Weight, pack, to_float32
from edge.export.weights.source import WeightSource
from edge.runtime.differences import kl_divergence
from tests import tiny
from tests.export.float16.sabotage import MODEL, SABOTAGES, output, sabotaged

IDS = np.random.default_rng(3).integers(0, 250, (2, 40))
RECIPE = "int4-sym-g128"
DEVICE = {"sums": FLOAT16_SUMS, "qkv": FLOAT16_SUMS}  # others need no kernel to overflow


class Judged(NamedTuple):
    """A model in float32, and how far an emulated run is from it; infinitely where that is not finite."""

    logits: Float32Array
    kld: float


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sabotage") / "checkpoint"
    tiny.make(MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 2.0**-30}))  # it grows with the stream
    return folder


def planned(folder: Path, text: Path, recipe: str = RECIPE, device: str = "GPU") -> Plan:
    return make_plan(folder, ExportSettings(recipe, device=device, calibration=text))  # type: ignore[arg-type]


def folded(plan: Plan, work: Path) -> Plan:
    return fold(plan, IDS, work, Journal(work / "journal", "key"), lambda _: None).plan


def in_4_bits(values: Float32Array, precision: Precision) -> PackedTensor:
    """Symmetric integers, rounded to nearest."""
    groups = values.reshape(len(values), -1, precision.group_size)
    scale = steps(*ranges(groups), precision).astype(np.float16)
    integers = np.clip(np.rint(groups / scale.astype(np.float32)), -8, 7).reshape(-1)
    return PackedTensor(values.shape, 4, True, precision.group_size, pack(integers, 4), scale[..., 0], None)


def judged(plan: Plan, weights: WeightSource, numerics: Numerics) -> Judged:
    packed: dict[str, Weight] = {}
    for name, assigned in plan.assignments.items():
        values = to_float32(weights.read(name))
        packed[name] = in_4_bits(values, assigned.precision) if assigned.precision.bits == 4 else values
    tokens = IDS[:1]
    exact: Float32Array = decoder.decoder(NumpyBuilder(packed, weights.spec), tokens, weights.spec)  # type: ignore[arg-type]
    found: Float32Array = decoder.decoder(EmulatedBuilder(packed, weights.spec, numerics), tokens, weights.spec)  # type: ignore[arg-type]
    return Judged(exact[0], kl_divergence(exact[0], found[0]) if np.isfinite(found).all() else math.inf)


@pytest.mark.parametrize("kind", SABOTAGES)
def test_folds_undo_it(kind: str, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    """Without the one fold that helps, it is as it was before."""
    numerics = DEVICE.get(kind, FLOAT16)
    recipe = "fp32" if kind in ("values", "residual") else RECIPE
    folder = sabotaged(checkpoint, tmp_path / "sabotaged", SABOTAGES[kind])
    plan = planned(folder, text, recipe)
    assert judged(plan, plan.weights, numerics).kld > 0.1
    if numerics is FLOAT16_SUMS:
        assert judged(plan, plan.weights, FLOAT16).kld < 1e-3, "only sums overflow"
    safe = folded(plan, tmp_path)
    assert judged(plan, safe.weights, numerics).kld < 1e-3
    assert safe.folds is not None
    needed = {"sums": "gate_up"}.get(kind, kind)
    without = replace(safe.folds, **{needed: getattr(Folds.none(plan.spec), needed)})
    assert judged(plan, FoldedWeights(plan.weights, without), numerics).kld > 0.1


def test_the_sabotaged_are_the_same_function(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    plan = planned(checkpoint, text, "fp32")
    expected = judged(plan, plan.weights, FLOAT16)
    assert expected.kld < 1e-4
    for kind, sabotage in SABOTAGES.items():
        folder = sabotaged(checkpoint, tmp_path / kind, sabotage)
        other = planned(folder, text, "fp32")
        np.testing.assert_array_equal(judged(other, other.weights, FLOAT16).logits, expected.logits)
        safe = folded(other, tmp_path)
        np.testing.assert_array_equal(judged(safe, safe.weights, FLOAT16).logits, expected.logits)


def test_outputs_of_a_glm_4_0414(text: Path, tmp_path: Path) -> None:
    """What its norms after attention and MLP read is not the stream, and is folded by itself."""
    kind = next(t for t in tiny.TINIES if t.name == "0414")
    tiny.make(kind, tmp_path / "checkpoint")
    plan = planned(sabotaged(tmp_path / "checkpoint", tmp_path / "sabotaged", output), text, "fp32")
    assert judged(plan, plan.weights, FLOAT16).kld > 0.1
    safe = folded(plan, tmp_path)
    assert judged(plan, safe.weights, FLOAT16).kld < 1e-3
    np.testing.assert_array_equal(
        judged(plan, safe.weights, FLOAT16).logits, judged(plan, plan.weights, FLOAT16).logits
    )
    assert safe.folds is not None
    without = FoldedWeights(plan.weights, replace(safe.folds, output=0))
    assert judged(plan, without, FLOAT16).kld > 0.1


def heavy_channel(folder: Path) -> None:
    """A channel of the residual stream as heavy as the demo model's: its squares pass the end of float16."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] *= 50
    tensors["model.embed_tokens.weight"][:, 5] = 25_000
    for name, values in tensors.items():
        if name.endswith("layernorm.weight") or name == "model.norm.weight":
            values[5] = 0.01
            values[np.arange(len(values)) != 5] *= 400
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_norms_step_by_step(text: Path, tmp_path: Path) -> None:
    """Their squares overflow to finite garbage, and not in the safe form; a row of zeros divides by something."""
    tiny.make(MODEL, tmp_path / "checkpoint")
    heavy_channel(tmp_path / "checkpoint")
    plan = planned(tmp_path / "checkpoint", text, "fp32", "NPU")
    assert 0.1 < judged(plan, plan.weights, FLOAT16_NORMS).kld < math.inf
    safe = folded(plan, tmp_path)
    assert safe.spec.safe_norms
    assert judged(plan, safe.weights, FLOAT16_NORMS).kld < 1e-2
    zeros = np.zeros((1, 2, MODEL.hidden_size), np.float32)
    norm: dict[str, Weight] = {"norm.weight": np.ones(MODEL.hidden_size, np.float32)}
    for spec in (safe.spec, replace(safe.spec, residual_exponent=12, rms_norm_eps=1.5625e-7)):
        builder = EmulatedBuilder(norm, spec, FLOAT16_NORMS)
        np.testing.assert_array_equal(builder.rms_norm(zeros, "norm", spec.stream_eps), zeros)
