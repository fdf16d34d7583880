"""Which folds a model needs to stay within float16, and what no fold can help.

In: `Ranges` of a model and its spec. Out: `Folds`, the ranges after them, and sentences about what is still large. A
fold brings the largest value to 1/16 of float16's largest number or below, is never more than 2^12, beyond which
float16's small end costs accuracy, and goes only as far as every scale that it makes smaller keeps all its bits. Where
nothing is large nothing is folded. Knows nothing about text or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from edge.export.float16.folds import Folds
from edge.export.float16.ranges import (
    DOWN,
    GATE_UP,
    HEAD,
    HEAD_SQUARES,
    OUT,
    OUTPUT,
    OUTPUT_SQUARES,
    QKV,
    RESIDUAL,
    SMALLEST,
    SQUARES,
    UP,
    VALUES,
    Ranges,
    input_of,
    sums_of,
)
from edge.export.graph.emulated import LARGEST
from edge.runtime.spec import MAX_EXPONENT, ModelSpec

HEADROOM = 4  # bits, between the largest value that was seen and float16's largest number
MARGIN = 1  # bits that scales may be smaller than measured, where channels are scaled or weights moved afterwards


def headroom(largest: float) -> float:
    """Bits between a value and float16's largest number; negative beyond it, infinite for 0."""
    return math.inf if largest == 0 else math.log2(LARGEST / largest) if largest < math.inf else -math.inf


def wanted(*largest: float) -> int:
    """The power of two to divide by, so that these values have the headroom."""
    least = min((headroom(value) for value in largest), default=math.inf)
    if math.isinf(least):
        return 0 if least > 0 else MAX_EXPONENT
    return min(max(math.ceil(HEADROOM - least), 0), MAX_EXPONENT)


def room(scale: float, margin: int = 0) -> int:
    """The power of two that a scale can be divided by and keep all its bits in float16; 0 at least."""
    return MAX_EXPONENT if math.isinf(scale) else max(math.floor(math.log2(scale / SMALLEST)) - margin, 0)


def choose(ranges: Ranges, spec: ModelSpec, *, safe_norms: bool, moved: bool) -> Folds:
    """Folds for a model with these ranges.

    moved: whether scales will differ from the measured ones, because AWQ or GPTQ works on the folded weights.
    """
    margin = MARGIN if moved else 0
    up, values, qkv, gate_up = [], [], [], []
    for block, scales in zip(ranges.blocks, ranges.scales, strict=True):
        qkv.append(wanted(block[input_of(QKV)], block.get(sums_of(QKV), 0)))
        gate_up.append(wanted(block[input_of(GATE_UP)], block.get(sums_of(GATE_UP), 0)))
        of_values = wanted(block[VALUES], block[input_of(OUT)], block.get(sums_of(OUT), 0))
        values.append(min(of_values, qkv[-1] + room(scales.get(VALUES, math.inf), margin)))
        of_up = wanted(block[UP], block[input_of(DOWN)], block.get(sums_of(DOWN), 0))
        up.append(min(of_up, gate_up[-1] + room(scales.get(UP, math.inf), margin)))
    writers = [
        room(scales.get(kind, math.inf), margin) + raised[layer]
        for layer, scales in enumerate(ranges.scales)
        for kind, raised in ((OUT, values), (DOWN, up))
    ]
    largest = ranges.kinds
    residual, output = wanted(largest[RESIDUAL]), wanted(largest.get(OUTPUT, 0))
    if spec.output_norms:  # whose weights, in float32, take the fold of the stream
        output = min(output, *writers)
    else:
        residual = min(residual, *writers)
    head = 0 if spec.tied_embeddings else wanted(ranges.outside[input_of(HEAD)], ranges.outside.get(sums_of(HEAD), 0))
    return Folds(residual, output, tuple(up), tuple(values), tuple(qkv), tuple(gate_up), head, safe_norms)


def folded(ranges: Ranges, folds: Folds) -> Ranges:
    """The ranges of the folded model, exactly: every value is a power of two times what it was."""
    blocks = []
    for layer, block in enumerate(ranges.blocks):
        powers = {
            RESIDUAL: folds.residual,
            OUTPUT: folds.output,
            VALUES: folds.values[layer],
            UP: folds.up[layer],
            **_both(QKV, folds.qkv[layer]),
            **_both(GATE_UP, folds.gate_up[layer]),
            **_both(OUT, folds.values[layer]),
            **_both(DOWN, folds.up[layer]),
        }
        blocks.append(_divided(block, powers, folds))
    outside = _divided(ranges.outside, {RESIDUAL: folds.residual, **_both(HEAD, folds.head)}, folds)
    return Ranges(tuple(blocks), outside, ranges.scales)


def _both(matrix: str, power: int) -> dict[str, int]:
    return {input_of(matrix): power, sums_of(matrix): power}


def _divided(values: Mapping[str, float], powers: Mapping[str, int], folds: Folds) -> dict[str, float]:
    powers = {SQUARES: 2 * folds.residual, OUTPUT_SQUARES: 2 * folds.output, **powers}
    return {kind: value * 2.0 ** -powers.get(kind, 0) for kind, value in values.items()}


def left(largest: Mapping[str, float]) -> dict[str, str]:
    """A sentence for each kind of value that comes nearer to float16's largest number than it should, by kind.

    largest: of every kind, after folds. Squares in norms have none: they are computed in float32, or by the safe form.
    """
    return {
        kind: f"{kind}: {value:.3g} after folds, {headroom(value):.1f} bits below float16's largest number, where "
        f"{HEADROOM} are wanted"
        for kind, value in largest.items()
        if kind not in (SQUARES, OUTPUT_SQUARES, HEAD_SQUARES) and headroom(value) < HEADROOM
    }
