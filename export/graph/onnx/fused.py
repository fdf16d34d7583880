"""The decoder as an ONNX graph of the operators that onnxruntime has fast kernels for.

In: weights by canonical name, and a graph writer. Out: a builder for `decoder.py`, whose values are names in that
graph. Knows nothing about whole models, files, recipes or how weights were compressed.

Integers are used from where OpenVINO has them: its u4 and u8 groups have the byte layout of MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from onnx import TensorProto

from edge.export.graph.onnx.attention import Attention, Lengths, Shown
from edge.export.graph.onnx.blocks import ONNX_BLOCKS, block_size
from edge.export.graph.onnx.common import OnnxParts
from edge.export.graph.onnx.packed import scale_of, zero_point_of
from edge.export.graph.onnx.writer import CONTRIB, GraphWriter
from edge.export.tensors import PackedTensor, Weight
from edge.runtime.bundle import OnnxKernels
from edge.runtime.graph_names import ATTENTION_RESIDUAL
from edge.runtime.spec import ModelSpec

INT8_ACTIVATIONS, FLOAT_ACTIVATIONS = 4, 1  # values of MatMulNBits' accuracy_level
# Weights of the head that share a scale in its kernel, and so activations that are rounded together: logits show that
# rounding directly, and smaller blocks cost the head no time (docs/findings.md).
HEAD_BLOCK = 32
LARGEST_OF_2_BITS = 128  # weights in a block: onnxruntime 1.32 has no kernel for more and takes 100 times as long
# That activations are written as the sum of where they are not to be rounded, for weights of 8 or 2 bits: as many as
# float32 needs. Two would take 15 % off the time of a token, and err by 4e-4 of the logits' scale, three err by 3e-6.
TERMS = 3


class Sum(NamedTuple):
    """A sum that the norm after it writes: one operator does both."""

    a: str
    b: str
    name: str


Value = str | Sum


def all_rows(hidden: str) -> str:
    return hidden


class OnnxBuilder(OnnxParts):
    """Emits `decoder.Builder` operations as fused ones of onnxruntime."""

    def __init__(
        self,
        writer: GraphWriter,
        weights: Mapping[str, Weight],
        spec: ModelSpec,
        kernels: OnnxKernels,
        lengths: Lengths | None = None,
        tables: tuple[str, str] | None = None,
        pick_rows: Callable[[str], str] = all_rows,
        shown: Shown | None = None,
    ) -> None:
        """tables: cos and sin of every position, (S, rotary_dim / 2); computed when a session is made where not given.

        pick_rows: writes what takes those tokens of (B, T, H) whose logits are wanted. shown: with tables only.
        """
        super().__init__(writer, weights, spec)
        self._kernels = kernels
        self._lengths = lengths
        self._pick_rows = pick_rows
        self._tables = tables
        self._shown = shown
        self._turns: tuple[str, str] | None = None  # cos and sin of the new tokens

    def embedding(self, ids: Value, name: str) -> Value:
        name, weight = f"{name}.weight", self._weights[f"{name}.weight"]
        if not isinstance(weight, PackedTensor):
            return self._scaled_rows(self._replaced(self._float_rows(self.written(ids), name)))
        block = block_size(name, weight.group_size, limit=weight.shape[1])
        rows = self._w.op(
            "GatherBlockQuantized",
            self._w.constant(name, weight.data.reshape(weight.shape[0], -1)),
            self.written(ids),
            scale_of(self._w, name, weight, block),
            zero_point_of(self._w, name, weight, block),
            name=f"{name}/rows",
            domain=CONTRIB,
            bits=weight.bits,
            block_size=block,
            gather_axis=0,
            quantize_axis=1,
        )
        return self._scaled_rows(self._replaced(rows))

    def _replaced(self, rows: str) -> str:
        """Rows of the embedding, or what stands in their place: in the checkpoint's own scale, as they are."""
        return rows if self._shown is None else self._w.op("Where", self._shown.mask, self._shown.rows, rows)

    def linear(self, x: Value, name: str) -> Value:
        matrix, bias = self._matrix_name(name), self._bias(name)
        weight = self._weights[matrix]
        if not isinstance(weight, PackedTensor):
            y = self._w.op("FusedMatMul", self.written(x), self._float32(matrix), name=name, domain=CONTRIB, transB=1)
            return self._w.op("Add", y, bias) if bias else y
        y = self._product(self.written(x), matrix, weight, name, bias)
        if weight.low_rank is None:
            return y
        narrow = self._product(self.written(x), f"{matrix}/lora_a", weight.low_rank.a, f"{name}/lora_a")
        return self._w.op("Add", y, self._product(narrow, f"{matrix}/lora_b", weight.low_rank.b, f"{name}/lora_b"))

    def _product(self, x: str, matrix: str, weight: PackedTensor, name: str, bias: str = "") -> str:
        """(B, T, K) -> (B, T, N)."""
        (n, k), int8 = weight.shape, self._kernels.int8_activations
        limit = LARGEST_OF_2_BITS if weight.bits == 2 else ONNX_BLOCKS[-1]
        block = block_size(matrix, weight.group_size, HEAD_BLOCK if int8 and name == "lm_head" else limit)
        # Without a kernel for 8 or 2 bits and floats, onnxruntime would unpack the matrix at every call, for 100 times
        # as long. The one it has rounds activations, so it is given what that takes from them as well.
        in_terms = weight.bits != 4 and not int8
        y = self._w.op(
            "MatMulNBits",
            self._terms(x, k, block) if in_terms else x,
            self._w.constant(f"{matrix}/blocks", weight.data.reshape(n, k // block, -1), matrix),
            scale_of(self._w, matrix, weight, block),
            zero_point_of(self._w, matrix, weight, block),
            "",
            "" if in_terms else bias,
            name=f"{name}/terms" if in_terms else name,
            domain=CONTRIB,
            N=n,
            K=k,
            bits=weight.bits,
            block_size=block,
            accuracy_level=INT8_ACTIVATIONS if int8 or in_terms else FLOAT_ACTIVATIONS,
        )
        if not in_terms:
            return y
        products = self._w.ops("Split", y, outputs=TERMS, axis=1, num_outputs=TERMS)
        return self._w.op("Sum", *products, *((bias,) if bias else ()), name=name)

    def _terms(self, x: str, k: int, block: int) -> str:
        """(B, T, K) -> (B, TERMS T, K), terms that sum to x: x rounded to 8 bits in blocks, its rest rounded, the rest.

        The kernel rounds to 8 bits as well, and so leaves all but the last as they are. What is lost of x in the end is
        at most 1/254^TERMS of its block's largest, which is what float32 itself rounds that to.
        """
        w = self._w
        rest, terms = w.op("Reshape", x, w.ints(0, 0, k // block, block)), []
        for _ in range(TERMS - 1):
            largest = w.op("ReduceMax", w.op("Abs", rest), w.ints(-1), keepdims=1)
            scale = w.op("Add", w.op("Mul", largest, w.scalar(1 / 127)), w.scalar(1e-30))  # not 0 for zeros either
            terms.append(w.op("Mul", w.op("Round", w.op("Div", rest, scale)), scale))
            rest = w.op("Sub", rest, terms[-1])
        return w.op("Reshape", w.op("Concat", *terms, rest, axis=1), w.ints(0, 0, k))

    def rms_norm(self, x: Value, name: str, eps: float) -> str:
        gamma = self._float32(f"{name}.weight")
        if self._spec.safe_norms:
            x, more = self._below_one(self.write(x), eps)
            mean = self._w.op("ReduceMean", self._w.op("Mul", x, x), self._w.ints(-1), keepdims=1)
            root = self._w.op("Sqrt", self._w.op("Add", mean, more))
            return self._w.op("Mul", self._w.op("Div", x, root), gamma, name=name)
        if isinstance(x, Sum):
            outputs = (name, "", "", x.name)
            kind = "SkipSimplifiedLayerNormalization"
            return self._w.ops(kind, x.a, x.b, gamma, outputs=outputs, domain=CONTRIB, epsilon=eps)[0]
        # Standard operators, in the form that onnxruntime replaces by its SimplifiedLayerNormalization.
        mean = self._w.op("ReduceMean", self._w.op("Pow", x, self._w.scalar(2.0)), self._w.ints(-1), keepdims=1)
        root = self._w.op("Sqrt", self._w.op("Add", mean, self._w.scalar(eps)))
        return self._w.op("Mul", self._w.op("Div", x, root), gamma, name=name)

    def qk_norm(self, qkv: Value, name: str, spec: ModelSpec) -> Value:  # noqa: ARG002
        return self._qk_normed(self.written(qkv), name, self.rms_norm)

    def attention(self, qkv: Value, layer: int, spec: ModelSpec) -> Value:
        assert self._lengths is not None
        x, tables = self.written(qkv), ("", "")
        if turned_by_attention(spec):
            tables = self._rotary_tables()
        else:
            x = self._turned(x, self._lengths)
        if self._kernels.float16_cache:
            x = self._w.op("Cast", x, to=TensorProto.FLOAT16)
        attention = Attention(self._w, spec, self._lengths, self._shown, tables)
        rows = self._kernels.joined_heads
        out = attention.by_length(x, layer, rows) if rows else attention.of_tokens(x, layer)
        return self._w.op("Cast", out, to=TensorProto.FLOAT) if self._kernels.float16_cache else out

    def swiglu(self, gate_up: Value, spec: ModelSpec) -> Value:  # noqa: ARG002
        gate, up = self._gate_and_up(self.written(gate_up))
        return self._w.op("Mul", self._w.op("QuickGelu", gate, domain=CONTRIB, alpha=1.0), up)  # which is silu

    def add(self, a: Value, b: Value, name: str) -> Value:
        a, b = self.written(a), self.written(b)
        if name == f"layers.{self._spec.num_layers - 1}{ATTENTION_RESIDUAL}":
            # All tokens have given their keys and values now; only those with wanted logits continue.
            a, b = self._pick_rows(a), self._pick_rows(b)
        return Sum(a, b, name)

    def written(self, value: Value) -> str:
        """The name of a value in the graph; of a sum, one that a norm writes."""
        return value.name if isinstance(value, Sum) else value

    def write(self, value: Value) -> str:
        """The name of a value that no norm follows."""
        return self._w.op("Add", value.a, value.b, name=value.name) if isinstance(value, Sum) else value

    def _rotary_tables(self) -> tuple[str, str]:
        """cos and sin of every position, (S, rotary_dim / 2)."""
        if self._tables is None:
            end = self._w.scalar(self._spec.max_position_embeddings)
            positions = self._w.op("Range", self._w.scalar(0), end, self._w.scalar(1))
            cos, sin = self._angles(self._w.op("Unsqueeze", positions, self._w.ints(1)))
            if self._kernels.float16_cache:
                cos, sin = (self._w.op("Cast", table, to=TensorProto.FLOAT16) for table in (cos, sin))
            self._tables = cos, sin
        return self._tables

    def _turned(self, qkv: str, lengths: Lengths) -> str:
        """q and k of (B, T, q_size + 2 kv_size) rotated, for heads that GroupQueryAttention cannot rotate."""
        w, qk_size = self._w, self._spec.q_size + self._spec.kv_size
        if self._turns is None and self._shown and self._tables:
            cos, sin = (w.op("Gather", table, self._shown.turns, axis=0) for table in self._tables)
            self._turns = w.op("Unsqueeze", cos, w.ints(1)), w.op("Unsqueeze", sin, w.ints(1))  # (B, 1, T, half)
        elif self._turns is None:
            new = w.op("Squeeze", w.op("Shape", qkv, start=1, end=2))
            end = w.op("Add", w.op("Cast", lengths.last, to=TensorProto.INT64), w.scalar(1))
            past = w.op("Max", w.op("Sub", end, new), w.scalar(0))  # a first prompt may be shorter than the batch
            positions = w.op("Add", w.op("Unsqueeze", past, w.ints(1)), w.op("Range", w.scalar(0), new, w.scalar(1)))
            self._turns = self._angles(w.op("Unsqueeze", positions, w.ints(1, 3)))  # (B, 1, T, 1)
        qk, v = self._split_heads(qkv)
        joined = self._join_heads(self._rotate(qk, *self._turns), qk_size)
        return w.op("Concat", joined, self._join_heads(v, self._spec.kv_size), axis=-1)


def turned_by_attention(spec: ModelSpec) -> bool:
    """Whether GroupQueryAttention can rotate such heads (contrib_ops/cpu/bert/group_query_attention_helper.h)."""
    return spec.rotary_dim % 16 == 0
