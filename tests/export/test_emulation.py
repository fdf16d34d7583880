"""What narrower numbers do to a model is computed with its own weights, and stored beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.export import emulation
from edge.export.emulation import NUMERICS, golden_rows, write_golden_rows
from edge.export.graph import numpy_builder
from edge.export.tensors import PackedTensor, Weight
from edge.runtime.golden_rows import NOISES, GoldenRows, read_golden_rows
from edge.runtime.spec import ModelSpec

SPEC = ModelSpec(
    architecture="llama",
    num_layers=2,
    hidden_size=64,
    intermediate_size=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=300,
    rotary_dim=16,
    rope_theta=10000.0,
    rms_norm_eps=1e-5,
    max_position_embeddings=128,
    qkv_bias=False,
    tied_embeddings=True,
    output_norms=False,
)
IDS = np.arange(1, 13)


def packed(rng: np.random.Generator, rows: int, width: int, group: int = 32) -> PackedTensor:
    """A symmetric matrix in 8 bits."""
    data = rng.integers(-128, 128, rows * width).astype(np.int8).view(np.uint8)
    return PackedTensor((rows, width), 8, True, group, data, np.full((rows, width // group), 0.003, np.float16), None)


def weights(scale: float = 1.0) -> dict[str, Weight]:
    rng = np.random.default_rng(0)
    found: dict[str, Weight] = {"embed.weight": rng.normal(0, scale, (300, 64)).astype(np.float32)}
    for layer in range(SPEC.num_layers):
        prefix = f"layers.{layer}."
        for name, rows, width in (
            ("attn.qkv", 64 + 2 * 32, 64),
            ("attn.o", 64, 64),
            ("mlp.gate_up", 256, 64),
            ("mlp.down", 64, 128),
        ):
            found[f"{prefix}{name}.weight"] = packed(rng, rows, width)
        for name in ("input_norm", "post_norm"):
            found[f"{prefix}{name}.weight"] = np.ones(64, np.float32)
    found["norm.weight"] = np.ones(64, np.float32)
    return found


def rows_of(model: dict[str, Weight]) -> GoldenRows:
    exact = numpy_builder.embed(model, IDS[None], SPEC)
    others = emulation.embed(model, IDS[None], SPEC)
    assert others.shape == (NUMERICS, IDS.size, SPEC.hidden_size)
    for layer in range(SPEC.num_layers):
        exact, others = emulation.block(model, exact, others, layer, SPEC)
    logits, *noisy = emulation.head(model, [exact], others, SPEC)
    return golden_rows(IDS, logits[0], [found[0] for found in noisy])


def test_every_numerics_has_a_divergence_of_its_own() -> None:
    found = {name: float(values.mean()) for name, values in rows_of(weights()).divergences.items()}
    assert tuple(found) == NOISES
    assert len(set(found.values())) == len(NOISES)
    assert 1e-9 < found["f16"] < found["bf16"] / 10, "three more bits: a 64th of the divergence, about"
    assert found["int8"] > 1e-6
    assert found["kv8"] > 1e-6


def test_the_cache_of_one_token_is_rounded_too() -> None:
    """Values are; keys of a single token decide nothing."""
    assert rows_of(weights()).divergences["kv8"][0] > 0


def test_numerics_that_overflow_have_none() -> None:
    """float16 ends at 65,504; the others go on."""
    found = rows_of(weights(scale=1e5)).divergences
    assert "f16" not in found
    assert {"bf16", "int8", "kv8"} <= found.keys()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = rows_of(weights())
    for name in ("a", "b"):
        write_golden_rows(rows, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len((tmp_path / "a").read_bytes()) < 20_000
    found = read_golden_rows((tmp_path / "a").read_bytes(), SPEC.vocab_size)
    np.testing.assert_array_equal(found.top.logits, rows.top.logits)
    for name, values in rows.divergences.items():
        np.testing.assert_allclose(found.divergences[name], values, rtol=1e-6)


@pytest.mark.parametrize("group", [16, 32, 64])
def test_activations_are_rounded_in_the_groups_of_weights(group: int) -> None:
    """At least 32: a larger group has a coarser step."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, 3, 64)).astype(np.float32) * np.repeat([1, 30], 32).astype(np.float32)
    model: dict[str, Weight] = {"w.weight": packed(rng, 8, 64, group)}
    found = emulation._MAKES["int8"](model, SPEC).linear(x, "w")
    expected = np.empty_like(x)
    for start in range(0, 64, max(group, 32)):
        part = x[..., start : start + max(group, 32)]
        step = np.abs(part).max(axis=-1, keepdims=True) / 127
        expected[..., start : start + max(group, 32)] = np.rint(part / step) * step
    right = numpy_builder.NumpyBuilder(model, SPEC).linear(expected, "w")
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)
