"""What rounding a matrix costs, against running the whole model with that matrix replaced."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge.export import parallel
from edge.export.budget import sensitivity
from edge.export.budget.disturbance import CARRIED
from edge.export.budget.sensitivity import Sensitivity, measure
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.export.compress import awq, gptq
from edge.export.compress.moments import moments
from edge.export.compress.precision import Precision, Rounding
from edge.export.compress.rounding import nearest
from edge.export.graph import decoder
from edge.export.graph.numpy_builder import NumpyBuilder
from edge.export.tensors import Float32Array, to_float32
from edge.export.weights.names import canonical_shapes
from edge.export.weights.source import Weights
from edge.runtime.differences import kl_divergence
from tests import tiny
from tests.oracle import dequantize

COARSE, FINE = Rounding.parse("int4-asym-g32"), Rounding.parse("int8-asym")
SCALED = Rounding.parse("int4-asym-g32-awq")
TINIES = {t.name: t for t in tiny.TINIES if t.name in ("partial-bias-untied", "full-tied", "0414")}


def weights_of(name: str, folder: Path) -> Weights:
    from edge.export.architectures.registry import describe

    tiny.make(TINIES[name], folder)
    return describe(open_checkpoint(folder))[1]


def ids_of(weights: Weights) -> np.ndarray:
    return np.random.default_rng(3).integers(0, weights.spec.vocab_size, (CARRIED + 3, 12))


def options_of(weights: Weights, *more: Rounding) -> dict[str, tuple[Rounding, ...]]:
    """More: of matrices in blocks."""
    return {
        name: (COARSE, *(more if name.startswith("layers.") else ()), FINE)
        for name, shape in canonical_shapes(weights.spec).items()
        if len(shape) == 2
    }


class Looking(NumpyBuilder):
    """The plain decoder, which keeps what goes into one matrix."""

    def linear(self, x: Float32Array, name: str) -> Float32Array:
        self.inputs[f"{name}.weight"] = x
        return super().linear(x, name)

    inputs: dict[str, Float32Array] = {}  # noqa: RUF012


@pytest.mark.parametrize("name", TINIES)
def test_a_gain_is_that_of_the_whole_model(name: str, tmp_path: Path) -> None:
    weights = weights_of(name, tmp_path)
    spec, ids, options = weights.spec, ids_of(weights), options_of(weights)
    # The one put in is the last of two.
    found = measure(weights.checkpoint, weights, dict.fromkeys(options, (FINE, COARSE)), ids)
    floats = {n: to_float32(weights.read(n)) for n in canonical_shapes(spec)}
    looking = Looking(floats, spec)
    expected = decoder.decoder(looking, ids, spec)[:CARRIED].reshape(-1, spec.vocab_size)
    assert set(found.measured) == set(options)
    for matrix in options:
        if matrix == "embed.weight":
            rounded = nearest(floats[matrix], COARSE.precision)
            x = floats[matrix][ids[:CARRIED]]
            error = np.square(rounded[ids[:CARRIED]] - x).sum() / np.square(x).sum()
        else:
            inputs = looking.inputs[matrix]
            fitted = inputs[CARRIED:].reshape(-1, inputs.shape[-1])
            rounded = dequantize(gptq.quantize(floats[matrix], moments(fitted), COARSE.precision))
            x = inputs[:CARRIED].reshape(-1, inputs.shape[-1])
            error = np.square(x @ (rounded - floats[matrix]).T).sum() / np.square(x @ floats[matrix].T).sum()
        logits = decoder.decoder(NumpyBuilder({**floats, matrix: rounded}, spec), ids[:CARRIED], spec)
        kld = kl_divergence(expected, logits.reshape(expected.shape))
        # Sums in another order: float32 logits of a few units are off by 1e-6, and the KLD by that times their spread.
        assert found.errors[matrix][COARSE] == pytest.approx(error, rel=1e-3)
        assert found.cost(matrix, COARSE) == pytest.approx(kld, rel=2e-2), matrix
        assert found.errors[matrix][FINE] < found.errors[matrix][COARSE] / 20  # 16 times finer steps: 256, times clips


def test_between_measured_blocks_the_gain_is_interpolated(tmp_path: Path) -> None:
    weights = weights_of("partial-bias-untied", tmp_path)
    found = measure(weights.checkpoint, weights, options_of(weights), ids_of(weights), depths=2)
    for kind in ("attn.qkv", "attn.o", "mlp.gate_up", "mlp.down"):
        first, middle, last = (f"layers.{layer}.{kind}.weight" for layer in range(3))
        assert middle not in found.measured
        assert found.gains[middle] == pytest.approx(np.sqrt(found.gains[first] * found.gains[last]))
        assert 0 < found.errors[middle][FINE] < found.errors[middle][COARSE] < 1


def test_scaled_channels_are_measured_as_the_export_scales_them(tmp_path: Path) -> None:
    """A matrix with scaled channels and one without them are two choices of the same bytes."""
    weights = weights_of("partial-bias-untied", tmp_path)
    spec, ids = weights.spec, ids_of(weights)
    plain = measure(weights.checkpoint, weights, options_of(weights), ids)
    found = measure(weights.checkpoint, weights, options_of(weights, SCALED), ids)
    floats = {n: to_float32(weights.read(n)) for n in canonical_shapes(spec)}
    looking = Looking(floats, spec)
    decoder.decoder(looking, ids, spec)
    assert found.gains == plain.gains
    differing = 0
    for matrix, errors in found.errors.items():
        assert {choice: error for choice, error in errors.items() if choice != SCALED} == plain.errors[matrix]
        if SCALED not in errors:
            continue
        inputs, weight = looking.inputs[matrix], floats[matrix]
        x, fitted = (part.reshape(-1, part.shape[-1]) for part in (inputs[:CARRIED], inputs[CARRIED:]))
        scales = awq.scales_of_inputs(weight, fitted, SCALED.precision, awq.shared_channels(matrix, spec))
        if scales is None:
            assert errors[SCALED] == errors[COARSE]
            continue
        differing += 1
        packed = gptq.quantize(weight * scales, moments(fitted / scales), SCALED.precision)
        off = dequantize(packed) / scales - weight
        error = np.square(x @ off.T).sum() / np.square(x @ weight.T).sum()
        assert errors[SCALED] == pytest.approx(error, rel=1e-3)
    assert differing > 4


@pytest.mark.parametrize("helps", [True, False])
def test_scaled_channels_between_measured_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helps: bool) -> None:
    """One precision of two is measured there, scaled and not; the others follow, as they do where nothing is scaled."""
    weights = weights_of("partial-bias-untied", tmp_path)
    if not helps:
        monkeypatch.setattr(awq, "scales_of_inputs", lambda *_: None)
    coarser, scaled = Rounding.parse("int4-asym-channel"), Rounding.parse("int4-asym-channel-awq")
    options = {
        name: (coarser, *choices[:1], scaled, *choices[1:]) if name.startswith("layers.") else choices
        for name, choices in options_of(weights, SCALED).items()
    }
    found = measure(weights.checkpoint, weights, options, ids_of(weights), depths=2)
    for name, errors in found.errors.items():
        assert set(errors) == set(options[name])
        assert all(0 < error < 1 for error in errors.values())
        if name.startswith("layers.") and not helps:
            assert errors[scaled] == pytest.approx(errors[coarser])
            assert errors[SCALED] == pytest.approx(errors[COARSE])


def test_the_ends_are_measured() -> None:
    assert sensitivity._measured(40, 10) == [0, 1, 6, 12, 17, 22, 27, 33, 38, 39]
    assert sensitivity._measured(3, 10) == [0, 1, 2]


def test_the_same_on_any_number_of_cores_and_through_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_of("partial-bias-untied", tmp_path)
    results = []
    for cores in (1, 3):
        monkeypatch.setattr(parallel, "physical_cores", lambda cores=cores: cores)
        results.append(measure(weights.checkpoint, weights, options_of(weights), ids_of(weights)))
    assert results[0] == results[1]
    assert Sensitivity.from_json(json.loads(json.dumps(results[0].to_json()))) == results[0]


@pytest.mark.parametrize("text", ["int4-asym-g32", "int4-sym-g32", "int4-asym-channel", "int8-asym", "int8-sym"])
def test_nearest_is_off_by_half_a_step(text: str) -> None:
    precision = Precision.parse(text)
    rows = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    rows[1] = 0
    rows[2] = np.abs(rows[2])
    groups = rows.reshape(5, -1, precision.group_size or 64)
    spread = np.maximum(groups.max(-1), 0) - np.minimum(groups.min(-1), 0)
    step = (
        2 * np.abs(groups).max(-1) / (1 << precision.bits)
        if precision.symmetric
        else spread / ((1 << precision.bits) - 1)
    )
    off = np.abs(nearest(rows, precision) - rows).reshape(groups.shape).max(-1)
    # The largest of the shorter side may lie a step beyond the last integer; a zero point is rounded as well.
    assert (off <= step * 1.001).all()
