"""The picture tower as OpenVINO graphs.

In: a VisionSpec and a mapping from canonical weight name to weight, which has to outlive the graph. Out: `ov.Model`s of
as many layers as are wanted: a bundle's segments, and single stages for verification. Knows nothing about checkpoints,
recipes, files or how weights were compressed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import openvino as ov
import openvino.opset13 as op

from edge.export.graph import tower
from edge.export.graph.openvino.models import _number_nodes, _share_constants
from edge.export.graph.openvino.ops import _as_float, f32, float_constant, i64, matrix, parameter, slice_last
from edge.export.tensors import PackedTensor, Weight
from edge.runtime.graph_names import HIDDEN, NEXT_HIDDEN, PATCHES, PLACES, ROTARY_TABLES, ROWS
from edge.runtime.vision.spec import VisionSpec


class OpenVINOTowerBuilder:
    """Emits `tower.Builder` operations as OpenVINO nodes."""

    def __init__(self, weights: Mapping[str, Weight], tables: tuple[ov.Node, ov.Node] | None) -> None:
        """tables: cos and sin of each patch, (n, head_dim / 2)."""
        self._weights = weights
        self._tables = tables
        self._constants: dict[str, ov.Node] = {}

    def linear(self, x: ov.Node, name: str) -> ov.Node:
        key = f"{name}.weight"
        weight = self._weights[key]
        y = op.matmul(x, self._constant(key), False, True)
        y.set_friendly_name(name)
        if isinstance(weight, PackedTensor) and weight.low_rank is not None:
            narrow = op.matmul(x, self._constant(f"{key}/lora_a", weight.low_rank.a), False, True)
            y = op.add(y, op.matmul(narrow, self._constant(f"{key}/lora_b", weight.low_rank.b), False, True))
        return op.add(y, self._vector(f"{name}.bias")) if f"{name}.bias" in self._weights else y

    def layer_norm(self, x: ov.Node, name: str, eps: float) -> ov.Node:
        normed = op.mvn(x, i64([-1]), True, eps, "inside_sqrt")
        return op.add(op.multiply(normed, self._vector(f"{name}.weight")), self._vector(f"{name}.bias"))

    def rms_norm(self, x: ov.Node, name: str, eps: float) -> ov.Node:
        mean = op.reduce_mean(op.power(x, f32(2.0)), i64([-1]), keep_dims=True)
        scaled = op.multiply(x, op.divide(f32(1.0), op.sqrt(op.add(mean, f32(eps)))))
        return op.multiply(scaled, self._vector(f"{name}.weight"))

    def gelu(self, x: ov.Node) -> ov.Node:
        return op.gelu(x, "erf")

    def swiglu(self, gate_up: ov.Node, width: int) -> ov.Node:
        gate, up = op.variadic_split(gate_up, i64(-1), i64([width, width])).outputs()
        return op.multiply(op.swish(gate), up)

    def attention(self, qkv: ov.Node, spec: VisionSpec) -> ov.Node:
        heads = op.transpose(op.reshape(qkv, i64([0, 3 * spec.num_heads, spec.head_dim]), True), i64([1, 0, 2]))
        heads = op.unsqueeze(heads, i64(0))  # (1, 3 heads, n, head_dim)
        if self._tables is None:
            q, k, v = op.split(heads, i64(1), 3).outputs()
        else:
            turning, v = op.variadic_split(heads, i64(1), i64([2 * spec.num_heads, spec.num_heads])).outputs()
            q, k = op.split(_turned(turning, *self._tables, spec.head_dim), i64(1), 2).outputs()
        out = op.scaled_dot_product_attention(q, k, v, causal=False)
        return op.reshape(op.transpose(op.squeeze(out, i64(0)), i64([1, 0, 2])), i64([-1, spec.hidden_size]), False)

    def add(self, a: ov.Node, b: ov.Node) -> ov.Node:
        return op.add(a, b)

    def divide(self, x: ov.Node, number: float) -> ov.Node:
        return op.divide(x, f32(number))

    def first_row(self, name: str) -> ov.Node:
        return op.gather(self._constant(name), i64([0]), i64(0))

    def chosen_rows(self, name: str, indices: ov.Node) -> ov.Node:
        return op.gather(self._constant(name), indices, i64(0))

    def mixed_rows(self, name: str, shares: ov.Node) -> ov.Node:
        return op.matmul(shares, self._constant(name), False, False)

    def join(self, parts: Sequence[ov.Node]) -> ov.Node:
        return op.concat(list(parts), 0)

    def without_first(self, x: ov.Node) -> ov.Node:
        return _rows(x, i64([1]), i64([np.iinfo(np.int64).max]))

    def merge(self, x: ov.Node, number: int, width: int) -> ov.Node:
        blocks = op.transpose(op.reshape(x, i64([-1, number, width]), False), i64([0, 2, 1]))
        return op.reshape(blocks, i64([-1, number * width]), False)

    def in_pieces(self, x: ov.Node, function: Callable[[ov.Node], ov.Node]) -> ov.Node:
        number = op.gather(op.shape_of(x), i64([0]), i64(0))
        cuts = range(tower.PIECES + 1)
        # Of integers, so rounded down.
        ends = [op.divide(op.multiply(number, i64([cut])), i64([tower.PIECES])) for cut in cuts]
        return op.concat([function(_rows(x, start, stop)) for start, stop in pairwise(ends)], 0)

    def _constant(self, name: str, weight: Weight | None = None) -> ov.Node:
        """weight: of this name, where it is part of another."""
        if name not in self._constants:  # one constant with as many readers as there are pieces
            self._constants[name] = matrix(self._weights[name] if weight is None else weight, name)
        return self._constants[name]

    def _vector(self, name: str) -> ov.Node:
        if name not in self._constants:
            self._constants[name] = float_constant(_as_float(self._weights[name])[None], name)
        return self._constants[name]


def segment_model(
    weights: Mapping[str, Weight], spec: VisionSpec, layers: range, *, first: bool, last: bool
) -> ov.Model:
    """Some layers of the tower, with what comes before them if `first` and what comes after if `last`.

    Takes PATCHES and PLACES, or HIDDEN, and ROTARY_TABLES where layers turn; gives ROWS, or NEXT_HIDDEN.
    """
    inputs, tables, places = [], None, None
    if first:
        x = parameter(PATCHES, [-1, spec.patch_values], ov.Type.f32)
        fixed = spec.kind == "eva"
        places = parameter(PLACES, [-1] if fixed else [-1, spec.side**2], ov.Type.i64 if fixed else ov.Type.f32)
        inputs += [x, places]
    else:
        x = parameter(HIDDEN, [-1, spec.hidden_size], ov.Type.f32)
        inputs.append(x)
    if spec.kind == "glm4v" and layers:
        cos, sin = (parameter(name, [-1, spec.head_dim // 2], ov.Type.f32) for name in ROTARY_TABLES)
        inputs += [cos, sin]
        tables = _both_halves(cos), _both_halves(sin)
    out = tower.part(OpenVINOTowerBuilder(weights, tables), x, places, spec, layers, first=first, last=last)
    name = ROWS if last else NEXT_HIDDEN
    result = op.result(out)
    result.set_friendly_name(name)
    out.output(0).set_names({name})
    model = ov.Model([result], inputs, f"tower.{layers.start}")
    _share_constants(model)
    _number_nodes(model)
    return model


def _both_halves(table: ov.Node) -> ov.Node:
    """(n, head_dim / 2) -> (1, 1, n, head_dim)."""
    return op.unsqueeze(op.concat([table, table], -1), i64([0, 1]))


def _turned(x: ov.Node, cos: ov.Node, sin: ov.Node, width: int) -> ov.Node:
    """(1, heads, n, width), the first half of each head against the second, in slices that OpenVINO fuses to one."""
    crossed = op.concat([op.multiply(slice_last(x, width // 2, width), f32(-1.0)), slice_last(x, 0, width // 2)], -1)
    return op.add(op.multiply(x, cos), op.multiply(crossed, sin))


def _rows(x: ov.Node, start: ov.Node, stop: ov.Node) -> ov.Node:
    """Rows from start to stop, which are (1,) at least."""
    return op.slice(x, start, stop, i64([1]), i64([0]))
