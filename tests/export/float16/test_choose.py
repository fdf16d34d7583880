"""Which folds are chosen: by what was measured, as far as scales allow, and no further."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.export.float16.choose import HEADROOM, choose, folded, headroom, left, room, wanted
from edge.export.float16.folds import FoldedWeights, Folds
from edge.export.float16.ranges import (
    DOWN,
    GATE,
    GATE_UP,
    HEAD,
    OUT,
    OUTPUT,
    QKV,
    QUERY,
    RESIDUAL,
    SMALLEST,
    SQUARES,
    UP,
    VALUES,
    Ranges,
    input_of,
    measure,
    sums_of,
)
from edge.export.graph.emulated import LARGEST
from edge.export.plan import make_plan
from edge.export.settings import ExportSettings
from edge.export.tensors import to_float32
from edge.runtime.spec import MAX_EXPONENT, ModelSpec
from tests import tiny

SPEC = ModelSpec("glm", 2, 64, 64, 1, 1, 64, 64, 1e4, 1e-6, 64, 64, False, False, False)
FREE = [RESIDUAL, UP, VALUES, *(f(m) for m in (QKV, OUT, GATE_UP, DOWN) for f in (input_of, sums_of))]
SIZES = st.floats(0, 1e9)


def ranges_of(draw: st.DataObject) -> Ranges:
    def block() -> dict[str, float]:
        kinds = [*FREE, GATE, QUERY, SQUARES, OUTPUT]
        return {kind: draw.draw(SIZES) for kind in kinds}

    def scales() -> dict[str, float]:
        return {kind: draw.draw(st.floats(SMALLEST, 1)) for kind in (UP, VALUES, OUT, DOWN)}

    outside = {kind: draw.draw(SIZES) for kind in (RESIDUAL, input_of(HEAD), sums_of(HEAD))}
    return Ranges((block(), block()), outside, (scales(), scales()))


@given(SIZES)
def test_to_a_sixteenth_of_the_limit_and_no_smaller_than_needed(largest: float) -> None:
    exponent = wanted(largest)
    assert 0 <= exponent <= MAX_EXPONENT
    if exponent < MAX_EXPONENT:
        assert largest * 2.0**-exponent <= LARGEST / 2**HEADROOM
    if exponent > 0:
        assert largest * 2.0 ** (1 - exponent) > LARGEST / 2**HEADROOM
    assert wanted(math.inf) == wanted(math.nan) == MAX_EXPONENT


@given(st.floats(SMALLEST, 1e4))
def test_a_scale_keeps_all_its_bits(scale: float) -> None:
    assert scale * 2.0 ** -room(scale) >= SMALLEST
    assert scale * 2.0 ** -(room(scale) + 1) < SMALLEST
    assert room(scale, 1) == max(room(scale) - 1, 0)


@given(st.data(), st.booleans(), st.booleans())
def test_folds_help_as_far_as_scales_allow(data: st.DataObject, output_norms: bool, moved: bool) -> None:
    spec = replace(SPEC, output_norms=output_norms)
    ranges = ranges_of(data)
    folds = choose(ranges, spec, safe_norms=True, moved=moved)
    written = folds.output if output_norms else folds.residual
    limited = False
    for layer, scales in enumerate(ranges.scales):
        for scale, power in (
            (scales[UP], folds.up[layer] - folds.gate_up[layer]),
            (scales[VALUES], folds.values[layer] - folds.qkv[layer]),
            (scales[OUT], written - folds.values[layer]),
            (scales[DOWN], written - folds.up[layer]),
        ):
            assert power <= 0 or scale * 2.0**-power >= SMALLEST
            limited |= scale * 2.0 ** -(power + 1) < SMALLEST * (4 if moved else 2)
    after = folded(ranges, folds)
    for kind, value in after.kinds.items():
        of_folds = kind in FREE or kind in (input_of(HEAD), sums_of(HEAD)) or (kind == OUTPUT and output_norms)
        if of_folds and not limited and ranges.kinds[kind] < LARGEST * 2.0 ** (MAX_EXPONENT - HEADROOM):
            assert headroom(value) >= HEADROOM
            assert kind not in left(after.kinds)
        elif kind in (GATE, QUERY):
            assert (kind in left(after.kinds)) == (headroom(value) < HEADROOM)


def test_a_small_model_is_left_alone() -> None:
    kinds = dict.fromkeys([*FREE, GATE, QUERY], 100.0)
    ranges = Ranges((kinds, kinds), {RESIDUAL: 1.0, input_of(HEAD): 3.0}, ({}, {}))
    assert choose(ranges, SPEC, safe_norms=False, moved=True) == Folds.none(SPEC)


@pytest.mark.parametrize("name", ["partial-bias-untied", "0414", "qwen3"])
@pytest.mark.parametrize("recipe", ["fp32", "int4-asym-g128", "int8-sym", "fp16"])
def test_ranges_after_folds_are_known_without_measuring(name: str, recipe: str, tmp_path: Path) -> None:
    """Exactly, since folds are exact; and every one of them moves what it should."""
    tiny.make(next(t for t in tiny.TINIES if t.name == name), tmp_path / "checkpoint")
    plan = make_plan(tmp_path / "checkpoint", ExportSettings(recipe))
    precisions = {name: assigned.precision for name, assigned in plan.assignments.items()}
    ids = np.random.default_rng(0).integers(0, 250, (2, 16))

    def measured(source: FoldedWeights) -> Ranges:
        weights = {name: to_float32(source.read(name)) for name in precisions}
        return measure(weights, ids, source.spec, precisions)

    none = Folds.none(plan.spec)
    before = measured(FoldedWeights(plan.weights, none))
    assert all(math.isfinite(value) and value > 0 for value in before.kinds.values())
    assert (sums_of(DOWN) in before.kinds) == (recipe == "int4-asym-g128")
    assert (OUTPUT in before.kinds) == plan.spec.output_norms
    for field in fields(Folds):
        if field.name == "safe_norms" or (field.name == "output" and not plan.spec.output_norms):
            continue
        single = isinstance(getattr(none, field.name), int)
        changed: dict[str, Any] = {field.name: 2 if single else (0, 2, 1)}
        folds = replace(none, **changed)
        after = measured(FoldedWeights(plan.weights, folds))
        assert (after.blocks, after.outside) == (folded(before, folds).blocks, folded(before, folds).outside)
        assert (after.blocks, after.outside) != (before.blocks, before.outside)
    assert Ranges.from_json(before.to_json()) == before
