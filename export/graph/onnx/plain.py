"""The decoder with float weights in standard ONNX operators, for any ONNX tool.

In: a ModelSpec, a mapping from canonical weight name to float weight, and where constants are kept. Out: an
`onnx.ModelProto`. Inputs and outputs are those of optimum's exports: input_ids (B, T), attention_mask (B, past + T),
position_ids (B, T), past_key_values.N.{key,value} (B, n_kv, past, head_dim) -> logits (B, T, vocab_size),
present.N.{key,value} (B, n_kv, past + T, head_dim). Knows nothing about engines or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import TensorProto

from edge.export.graph import decoder
from edge.export.graph.onnx.common import OnnxParts
from edge.export.graph.onnx.writer import Constants, GraphWriter
from edge.export.tensors import Weight
from edge.runtime.graph_names import cached_names, past_name, present_name
from edge.runtime.spec import ModelSpec

MASKED = -65504.0  # finite, so that a row that is all padding gives numbers and not NaN


class PlainBuilder(OnnxParts):
    """Emits `decoder.Builder` operations as standard ONNX operators."""

    def __init__(
        self, writer: GraphWriter, weights: Mapping[str, Weight], spec: ModelSpec, positions: str, mask: str
    ) -> None:
        """positions: (B, 1, T, 1) int64. mask: (B, 1, T, past + T), added to attention scores."""
        super().__init__(writer, weights, spec)
        self._mask = mask
        self._cos, self._sin = self._angles(positions)

    def embedding(self, ids: str, name: str) -> str:
        return self._scaled_rows(self._float_rows(ids, f"{name}.weight"))

    def linear(self, x: str, name: str) -> str:
        """As Gemm, which takes a matrix as it is stored; MatMul would want it transposed."""
        n, k = self._weights[self._matrix_name(name)].shape
        flat = self._w.op("Reshape", x, self._w.ints(-1, k))
        flat = self._w.op("Gemm", flat, self._float32(self._matrix_name(name)), self._bias(name), transB=1)
        batch = self._w.op("Slice", self._w.op("Shape", x), self._w.ints(0), self._w.ints(-1))
        return self._w.op("Reshape", flat, self._w.op("Concat", batch, self._w.ints(n), axis=0), name=name)

    def rms_norm(self, x: str, name: str, eps: float) -> str:
        x, more = self._below_one(x, eps) if self._spec.safe_norms else (x, self._w.scalar(eps))
        mean = self._w.op("ReduceMean", self._w.op("Mul", x, x), self._w.ints(-1), keepdims=1)
        root = self._w.op("Sqrt", self._w.op("Add", mean, more))
        return self._w.op("Mul", self._w.op("Div", x, root), self._float32(f"{name}.weight"), name=name)

    def qk_norm(self, qkv: str, name: str, spec: ModelSpec) -> str:  # noqa: ARG002
        return self._qk_normed(qkv, name, self.rms_norm)

    def attention(self, qkv: str, layer: int, spec: ModelSpec) -> str:
        qk, v = self._split_heads(qkv)
        sizes = self._w.ints(spec.num_heads, spec.num_kv_heads)
        q, k = self._w.ops("Split", self._rotate(qk, self._cos, self._sin), sizes, outputs=2, axis=1)
        k, v = (
            self._w.op("Concat", past_name(name), new, name=present_name(name), axis=2)
            for name, new in zip(cached_names([layer]), (k, v), strict=True)
        )
        scores = self._w.op("MatMul", q, self._w.op("Transpose", self._repeated(k), perm=[0, 1, 3, 2]))
        scores = self._w.op("Mul", scores, self._w.scalar(1 / math.sqrt(spec.head_dim)))  # (B, n, T, past + T)
        weights = self._w.op("Softmax", self._w.op("Add", scores, self._mask), axis=-1)
        return self._join_heads(self._w.op("MatMul", weights, self._repeated(v)), spec.q_size)

    def swiglu(self, gate_up: str, spec: ModelSpec) -> str:  # noqa: ARG002
        gate, up = self._gate_and_up(gate_up)
        return self._w.op("Mul", self._w.op("Mul", gate, self._w.op("Sigmoid", gate)), up)

    def add(self, a: str, b: str, name: str) -> str:
        return self._w.op("Add", a, b, name=name)

    def _repeated(self, x: str) -> str:
        """(B, n_kv, S, head_dim) -> (B, n, S, head_dim): each KV head serves n / n_kv query heads in a row."""
        spec, repeats = self._spec, self._spec.num_heads // self._spec.num_kv_heads
        if repeats == 1:
            return x
        wide = self._w.op("Expand", self._w.op("Unsqueeze", x, self._w.ints(2)), self._w.ints(1, 1, repeats, 1, 1))
        return self._w.op("Reshape", wide, self._w.ints(0, spec.num_heads, -1, spec.head_dim))


def plain_decoder(weights: Mapping[str, Weight], spec: ModelSpec, constants: Constants) -> onnx.ModelProto:
    """The whole decoder with its KV cache as inputs and outputs that grow."""
    w = GraphWriter(constants)
    ids = w.input("input_ids", TensorProto.INT64, ["batch", "tokens"])
    attention_mask = w.input("attention_mask", TensorProto.INT64, ["batch", "total"])
    position_ids = w.input("position_ids", TensorProto.INT64, ["batch", "tokens"])
    cache = cached_names(range(spec.num_layers))
    for name in cache:
        w.input(past_name(name), TensorProto.FLOAT, ["batch", spec.num_kv_heads, "past", spec.head_dim])
    positions = w.op("Unsqueeze", position_ids, w.ints(1, 3))
    builder = PlainBuilder(w, weights, spec, positions, _causal_mask(w, ids, attention_mask))
    w.op("Identity", decoder.decoder(builder, ids, spec), name="logits")
    w.output("logits", TensorProto.FLOAT, ["batch", "tokens", spec.vocab_size])
    for name in cache:
        w.output(present_name(name), TensorProto.FLOAT, ["batch", spec.num_kv_heads, "total", spec.head_dim])
    return w.model(spec.architecture)


def _causal_mask(w: GraphWriter, ids: str, attention_mask: str) -> str:
    """(B, 1, T, past + T): a token sees itself and what came before, except padding."""
    total = w.op("Squeeze", w.op("Shape", attention_mask, start=1))
    new = w.op("Squeeze", w.op("Shape", ids, start=1))
    keys = w.op("Range", w.scalar(0), total, w.scalar(1))
    queries = w.op("Unsqueeze", w.op("Range", w.op("Sub", total, new), total, w.scalar(1)), w.ints(1))
    causal = w.op("LessOrEqual", keys, queries)  # (T, past + T)
    real = w.op("Unsqueeze", w.op("Cast", attention_mask, to=TensorProto.BOOL), w.ints(1, 2))
    return w.op("Where", w.op("And", causal, real), w.scalar(0.0), w.scalar(MASKED))
