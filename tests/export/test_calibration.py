"""Recipes that are fitted to text: the same tokens through the same decoder, resumed, and what can be wrong with it."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge.export import pipeline
from edge.export.compress.calibration import Calibration
from edge.export.compress.drift import Drift
from edge.export.compress.recipes import find_recipe
from edge.export.graph import decoder
from edge.export.graph.numpy_builder import NumpyBuilder
from edge.export.pipeline import export
from edge.export.plan import make_plan
from edge.export.settings import ExportSettings
from edge.export.tensors import Float32Array, FloatArray, Weight, to_float32
from edge.export.weights.names import canonical_shapes
from edge.runtime.bundle import open_bundle
from edge.runtime.differences import FLOAT32_BOUND
from edge.runtime.errors import CalibrationError, RecipeError
from edge.runtime.manifest import Manifest
from edge.runtime.verify import verify
from tests import tiny
from tests.conftest import ENGINES

RECIPE = "int4-asym-g64-rot-gptq"
CORRECTED = "int4-asym-g64-awq-gptq-lora"


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models this small need no more."""
    monkeypatch.setattr(pipeline, "WINDOWS", 8)


def digests(bundle: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(bundle.iterdir())}


@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize("kind", tiny.TINIES, ids=lambda kind: kind.name)
def test_with_float_weights_it_is_the_decoder(kind: tiny.Tiny, twin: bool, tmp_path: Path) -> None:
    """And every matrix meets the inputs that the decoder gives it, in its order; there is nothing to correct."""
    tiny.make(kind, tmp_path / "checkpoint")
    weights = make_plan(tmp_path / "checkpoint", ExportSettings("fp32")).weights
    floats = {name: to_float32(weights.read(name)) for name in canonical_shapes(weights.spec)}
    ids = np.random.default_rng(0).integers(0, weights.spec.vocab_size, (3, 20))
    calibration = Calibration(ids, weights.spec, twin=twin)
    calibration.embed(floats["embed.weight"], floats["embed.weight"])
    met: list[tuple[str, tuple[int, ...]]] = []

    def keep(name: str, weight: FloatArray, inputs: Float32Array, drift: Drift | None) -> Weight:
        met.append((name, inputs.shape))
        assert drift is None or not drift.sums.any()
        return weight

    builder = NumpyBuilder(floats, weights.spec)
    expected = builder.embedding(ids, "embed")
    for layer in range(weights.spec.num_layers):
        calibration.block(layer, floats, keep)
        expected = decoder.block(builder, expected, layer, weights.spec)
        for found in np.split(calibration.hidden, 1 + twin):
            assert np.abs(found - expected).max() <= FLOAT32_BOUND * np.abs(expected).max()
    normed = builder.rms_norm(expected, "norm", weights.spec.rms_norm_eps)
    np.testing.assert_allclose(calibration.last(floats), normed.reshape(60, -1), rtol=1e-3, atol=1e-4)
    h, f, q = weights.spec.hidden_size, weights.spec.intermediate_size, weights.spec.q_size
    widths = {"attn.qkv": h, "attn.o": q, "mlp.gate_up": h, "mlp.down": f}
    assert met[:4] == [(f"layers.0.{name}.weight", (60, width)) for name, width in widths.items()]


def test_drift_is_what_the_compressed_model_lacks(tiny_checkpoint: Path) -> None:
    """Against its definition: outputs and residual of the float model less those of the other, times the inputs."""
    weights = make_plan(tiny_checkpoint, ExportSettings("fp32")).weights
    spec = weights.spec
    floats = {name: to_float32(weights.read(name)) for name in canonical_shapes(spec)}
    rng = np.random.default_rng(1)
    rounded: dict[str, FloatArray] = {
        name: (w + 0.05 * w.std() * rng.standard_normal(w.shape)).astype(np.float32) for name, w in floats.items()
    }
    ids = rng.integers(0, spec.vocab_size, (2, 24))
    calibration = Calibration(ids, spec, twin=True)
    calibration.embed(floats["embed.weight"], rounded["embed.weight"])
    start = calibration.hidden
    drifts: dict[str, Float32Array] = {}

    def keep(name: str, weight: FloatArray, _inputs: Float32Array, drift: Drift | None) -> Weight:
        assert drift is not None
        drifts[name] = weight @ drift.sums if drift.of_inputs else drift.sums
        return rounded[name]

    calibration.block(0, floats, keep)
    p, (ours, theirs) = (
        "layers.0.",
        (NumpyBuilder({**floats, **rounded_matrices(rounded)}, spec), NumpyBuilder(floats, spec)),
    )
    sides = []
    for builder, hidden in ((theirs, start[:2]), (ours, start[2:])):
        x = builder.rms_norm(hidden, p + "input_norm", spec.rms_norm_eps)
        a = builder.attention(builder.linear(x, p + "attn.qkv"), 0, spec)
        after = hidden + builder.linear(a, p + "attn.o")
        g = builder.rms_norm(after, p + "post_norm", spec.rms_norm_eps)
        m = builder.swiglu(builder.linear(g, p + "mlp.gate_up"), spec)
        sides.append([values.reshape(48, -1) for values in (x, a, g, m, hidden, after)])
    for index, (name, stream) in enumerate((("attn.qkv", None), ("attn.o", 4), ("mlp.gate_up", None), ("mlp.down", 5))):
        weight = floats[f"{p}{name}.weight"]
        lacking = (sides[0][index] - sides[1][index]) @ weight.T
        if stream is not None:
            lacking = lacking + sides[0][stream] - sides[1][stream]
        expected = lacking.T @ sides[1][index]
        error = np.abs(drifts[f"{p}{name}.weight"] - expected).max()
        assert error <= FLOAT32_BOUND * np.abs(expected).max()


def rounded_matrices(rounded: dict[str, Float32Array]) -> dict[str, Float32Array]:
    """Norms and biases stay as they are."""
    return {name: weight for name, weight in rounded.items() if weight.ndim == 2}


@pytest.fixture(scope="module")
def nearest(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return export(tiny_checkpoint, tmp_path_factory.mktemp("nearest") / "out", "int4-asym-g64", format="openvino")


def block_error(manifest: Manifest) -> float:
    return float(np.mean([check.error for check in manifest.checks if check.stage.startswith("block")]))


@pytest.mark.parametrize("recipe", ["int4-asym-g64-gptq", RECIPE])
def test_blocks_err_less_than_those_of_rounded_weights(
    recipe: str, nearest: Manifest, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """On tokens that were not calibrated with."""
    manifest = export(tiny_checkpoint, tmp_path / "out", recipe, format="openvino")
    assert block_error(manifest) < 0.9 * block_error(nearest)


@pytest.mark.parametrize(
    ("recipe", "less"),
    [
        ("int4-asym-g64-awq-data-free", 1.1),  # channels of random weights are alike: no scale helps here
        ("int4-asym-g64-awq-se", 1.1),
        pytest.param("int4-asym-g64-nncf-gptq", 0.95, marks=pytest.mark.slow),
        ("int4-asym-g64-awq-gptq-lora", 0.75),
    ],
)
def test_other_ways_of_rounding(
    recipe: str, less: float, tiny_checkpoint: Path, nearest: Manifest, tmp_path: Path
) -> None:
    """Blocks err less than those rounded to nearest, and both engines compute what the export stored."""
    manifest = export(tiny_checkpoint, tmp_path / "out", recipe)
    assert block_error(manifest) < less * block_error(nearest)
    assert manifest.files["openvino_model.bin"] != nearest.files["openvino_model.bin"]
    assert {report.engine for report in verify(tmp_path / "out")} == set(ENGINES)
    sizes = {name: tensor.nbytes for name, tensor in manifest.tensors.items()}
    spec, wanted = manifest.spec, find_recipe(recipe)
    assert sizes == {name: wanted.bytes_of(name, shape) for name, shape in canonical_shapes(spec).items()}
    corrected = {name for name, tensor in manifest.tensors.items() if "product of rank 16" in tensor.note}
    assert bool(corrected) == bool(wanted.rank)
    assert bool(manifest.calibration) == wanted.calibrated


@pytest.mark.slow
def test_killed_and_resumed(tiny_checkpoint: Path, text: Path, tmp_path: Path) -> None:
    """With a correction, so that there is all that a weight can have."""
    export(tiny_checkpoint, tmp_path / "whole", CORRECTED, calibration=text)
    script = f"""
import os, signal
from edge.export import pipeline
from edge.export.pipeline import export
pipeline.WINDOWS = 8
def progress(p):
    if p.stage == "block 1":
        os.kill(os.getpid(), signal.SIGKILL)
out, text = {str(tmp_path / "resumed")!r}, {str(text)!r}
export({str(tiny_checkpoint)!r}, out, {CORRECTED!r}, calibration=text, progress=progress)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    seen: list[str] = []
    export(
        tiny_checkpoint,
        tmp_path / "resumed",
        CORRECTED,
        calibration=text,
        progress=lambda p: seen.append(p.stage),
    )
    assert "block 0" not in seen
    assert digests(tmp_path / "resumed") == digests(tmp_path / "whole")


def test_text_of_ones_own(tiny_checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("".join(f"Line {i} says {i * i} and nothing else.\n" for i in range(2000)), encoding="utf-8")
    manifest = export(tiny_checkpoint, tmp_path / "out", "int4-asym-g64-gptq", format="openvino", calibration=text)
    assert manifest.calibration.startswith("mine.txt, sha256 ")
    builtin = export(tiny_checkpoint, tmp_path / "builtin", "int4-asym-g64-gptq", format="openvino")
    weights = [(tmp_path / name / "openvino_model.bin").read_bytes() for name in ("out", "builtin")]
    assert weights[0] != weights[1]
    assert builtin.calibration.startswith("docstrings of Python's standard library, sha256 ")
    assert open_bundle(tmp_path / "out").manifest == manifest


def test_too_little_text(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.", encoding="utf-8")
    with pytest.raises(CalibrationError, match="tokens"):
        export(tiny_checkpoint, tmp_path / "out", RECIPE, calibration=tmp_path / "short.txt")
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_needs_no_text(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="takes no calibration text; leave it out, or use a recipe that is fitted to text, like int4-"
    ):
        export(tiny_checkpoint, tmp_path / "out", "int8-asym", calibration=tmp_path / "missing.txt")
