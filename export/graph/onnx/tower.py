"""The picture tower as ONNX graphs of the operators that onnxruntime has fast kernels for.

In: a VisionSpec, a mapping from canonical weight name to weight, and where constants are kept. Out: `onnx.ModelProto`s
of as many layers as are wanted: a bundle's segments, and single stages for verification. Knows nothing about
checkpoints, recipes, files or how weights were compressed.

Packed matrices are multiplied with floats, never with activations of 8 bits: those of 4 bits are unpacked a few rows at
a time, those of 8 bits one matrix at a time, which thousands of patches pay for once. Scores are never written out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from edge.export.graph import tower
from edge.export.graph.onnx.blocks import ONNX_BLOCKS, block_size
from edge.export.graph.onnx.packed import scale_of, widened, zero_point_of
from edge.export.graph.onnx.writer import CONTRIB, Array, Constants, GraphWriter
from edge.export.tensors import PackedTensor, Weight
from edge.runtime.graph_names import HIDDEN, NEXT_HIDDEN, PATCHES, PLACES, ROTARY_TABLES, ROWS
from edge.runtime.vision.spec import VisionSpec

FLOAT_ACTIVATIONS = 1  # a value of MatMulNBits' accuracy_level


class OnnxTowerBuilder:
    """Emits `tower.Builder` operations as fused ones of onnxruntime. Packed matrices have to be unsigned."""

    def __init__(
        self, writer: GraphWriter, weights: Mapping[str, Weight], tables: tuple[str, str] | None = None
    ) -> None:
        """tables: cos and sin of each patch, (n, head_dim / 2)."""
        self._w = writer
        self._weights = weights
        self._tables = tables
        self._piece = ""  # ends the names of what is made for some rows only

    def linear(self, x: str, name: str) -> str:
        matrix = f"{name}.weight"
        weight, named = self._weights[matrix], f"{name}{self._piece}"
        bias = self._float32(f"{name}.bias") if f"{name}.bias" in self._weights else ""
        if isinstance(weight, PackedTensor) and weight.low_rank is not None:
            narrow = self._product(x, f"{matrix}/lora_a", weight.low_rank.a, f"{named}/lora_a")
            wide = self._product(narrow, f"{matrix}/lora_b", weight.low_rank.b, f"{named}/lora_b")
            return self._w.op("Add", self._product(x, matrix, weight, named, bias), wide)
        return self._product(x, matrix, weight, named, bias)

    def layer_norm(self, x: str, name: str, eps: float) -> str:
        scale, bias = self._float32(f"{name}.weight"), self._float32(f"{name}.bias")
        return self._w.op("LayerNormalization", x, scale, bias, name=name, epsilon=eps, axis=-1)

    def rms_norm(self, x: str, name: str, eps: float) -> str:
        """Standard operators, in the form that onnxruntime replaces by its SimplifiedLayerNormalization."""
        w = self._w
        mean = w.op("ReduceMean", w.op("Pow", x, w.scalar(2.0)), w.ints(-1), keepdims=1)
        root = w.op("Sqrt", w.op("Add", mean, w.scalar(eps)))
        return w.op("Mul", w.op("Div", x, root), self._float32(f"{name}.weight"), name=name)

    def gelu(self, x: str) -> str:
        return self._w.op("Gelu", x, domain=CONTRIB)  # that of erf: the one of tanh is FastGelu

    def swiglu(self, gate_up: str, width: int) -> str:
        gate, up = self._w.ops("Split", gate_up, self._w.ints(width, width), outputs=2, axis=-1)
        return self._w.op("Mul", self._w.op("QuickGelu", gate, domain=CONTRIB, alpha=1.0), up)  # which is silu

    def attention(self, qkv: str, spec: VisionSpec) -> str:
        w, h = self._w, spec.hidden_size
        q, k, v = w.ops("Split", w.op("Unsqueeze", qkv, w.ints(0)), w.ints(h, h, h), outputs=3, axis=-1)  # (1, n, h)
        if self._tables is not None:
            q, k = (self._turned(x, *self._tables) for x in (q, k))
        out = w.op("MultiHeadAttention", q, k, v, domain=CONTRIB, num_heads=spec.num_heads)
        return w.op("Squeeze", out, w.ints(0))

    def add(self, a: str, b: str) -> str:
        return self._w.op("Add", a, b)

    def divide(self, x: str, number: float) -> str:
        return self._w.op("Div", x, self._w.scalar(float(number)))

    def first_row(self, name: str) -> str:
        return self.chosen_rows(name, self._w.ints(0))

    def chosen_rows(self, name: str, indices: str) -> str:
        weight = self._floats(name)
        rows = self._w.op("Gather", self._w.constant(name, weight), indices, axis=0)
        return rows if weight.dtype == np.float32 else self._w.op("Cast", rows, to=TensorProto.FLOAT)

    def mixed_rows(self, name: str, shares: str) -> str:
        return self._w.op("MatMul", shares, self._float32(name))

    def join(self, parts: Sequence[str]) -> str:
        return self._w.op("Concat", *parts, axis=0)

    def without_first(self, x: str) -> str:
        return self._rows(x, self._w.ints(1), self._w.op("Shape", x, end=1))

    def merge(self, x: str, number: int, width: int) -> str:
        w = self._w
        blocks = w.op("Transpose", w.op("Reshape", x, w.ints(-1, number, width)), perm=[0, 2, 1])
        return w.op("Reshape", blocks, w.ints(-1, number * width))

    def in_pieces(self, x: str, function: Callable[[str], str]) -> str:
        w, pieces = self._w, range(tower.PIECES)
        number = w.op("Shape", x, end=1)
        # Of integers, so rounded down.
        inner = [w.op("Div", w.op("Mul", number, w.ints(piece)), w.ints(tower.PIECES)) for piece in pieces[1:]]
        ends, parts = [w.ints(0), *inner, number], []
        for piece in pieces:
            self._piece = f"/{piece}"
            parts.append(function(self._rows(x, ends[piece], ends[piece + 1])))
        self._piece = ""
        return self.join(parts)

    def _product(self, x: str, matrix: str, weight: Weight, name: str, bias: str = "") -> str:
        """(n, K) -> (n, N)."""
        w = self._w
        if not isinstance(weight, PackedTensor):
            return self._float_product(x, widened(w, matrix, weight), name, bias)
        if weight.bits == 8 and weight.group_size % ONNX_BLOCKS[0]:
            return self._float_product(x, self._unpacked(matrix, weight), name, bias)
        (n, k), block = weight.shape, block_size(matrix, weight.group_size)
        return w.op(
            "MatMulNBits",
            x,
            w.constant(f"{matrix}/blocks", weight.data.reshape(n, k // block, -1), matrix),
            scale_of(w, matrix, weight, block),
            zero_point_of(w, matrix, weight, block),
            "",
            bias,
            name=name,
            domain=CONTRIB,
            N=n,
            K=k,
            bits=weight.bits,
            block_size=block,
            accuracy_level=FLOAT_ACTIVATIONS,
        )

    def _float_product(self, x: str, matrix: str, name: str, bias: str) -> str:
        """As Gemm, which takes a matrix as it is stored; MatMul would want it transposed."""
        return self._w.op("Gemm", x, matrix, bias, name=name, transB=1)

    def _unpacked(self, name: str, weight: PackedTensor) -> str:
        """A matrix whose groups no kernel takes, such as that of patches, in float32 when a session is made."""
        w, wide = self._w, f"{name}/f32"
        if w.has(wide):
            return wide
        (n, k), groups = weight.shape, (weight.shape[0], weight.groups, 1)
        q = w.constant(f"{name}/groups", weight.data.reshape(n, weight.groups, -1), name)
        q = w.op("Cast", q, to=TensorProto.FLOAT)
        if weight.zero_point is None:
            zero = w.scalar(float(weight.middle))
        else:
            zero = w.constant(f"{name}/zero_point/groups", weight.zero_point.reshape(groups), f"{name}/zero_point")
            zero = w.op("Cast", zero, to=TensorProto.FLOAT)
        scale = w.constant(f"{name}/scale/groups", weight.scale.reshape(groups), f"{name}/scale")
        scaled = w.op("Mul", w.op("Sub", q, zero), w.op("Cast", scale, to=TensorProto.FLOAT))
        return w.op("Reshape", scaled, w.ints(n, k), name=wide)

    def _turned(self, x: str, cos: str, sin: str) -> str:
        """(1, n, h), the first half of each head against the second; row i by line i of the tables."""
        return self._w.op("RotaryEmbedding", x, self._w.ints(0), cos, sin, domain=CONTRIB)

    def _rows(self, x: str, start: str, stop: str) -> str:
        return self._w.op("Slice", x, start, stop, self._w.ints(0))

    def _float32(self, name: str) -> str:
        return widened(self._w, name, self._floats(name))

    def _floats(self, name: str) -> Array:
        weight = self._weights[name]
        assert not isinstance(weight, PackedTensor), f"{name} is packed"
        return weight


def segment_model(
    weights: Mapping[str, Weight], spec: VisionSpec, layers: range, constants: Constants, *, first: bool, last: bool
) -> onnx.ModelProto:
    """Some layers of the tower, with what comes before them if `first` and what comes after if `last`.

    Takes PATCHES and PLACES, or HIDDEN, and ROTARY_TABLES where layers turn; gives ROWS, or NEXT_HIDDEN.
    """
    w, places, tables = GraphWriter(constants), None, None
    if first:
        x = w.input(PATCHES, TensorProto.FLOAT, ["patches", spec.patch_values])
        if spec.kind == "eva":
            places = w.input(PLACES, TensorProto.INT64, ["patches"])
        else:
            places = w.input(PLACES, TensorProto.FLOAT, ["patches", spec.side**2])
    else:
        x = w.input(HIDDEN, TensorProto.FLOAT, ["patches", spec.hidden_size])
    if spec.kind == "glm4v" and layers:
        cos, sin = (w.input(name, TensorProto.FLOAT, ["patches", spec.head_dim // 2]) for name in ROTARY_TABLES)
        tables = cos, sin
    out = tower.part(OnnxTowerBuilder(w, weights, tables), x, places, spec, layers, first=first, last=last)
    name, width = (ROWS, spec.out_size) if last else (NEXT_HIDDEN, spec.hidden_size)
    w.op("Identity", out, name=name)
    w.output(name, TensorProto.FLOAT, ["rows", width])
    return w.model(f"tower.{layers.start}")
