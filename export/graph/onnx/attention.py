"""Attention over a cache, in onnxruntime's GroupQueryAttention.

In: a graph writer, queries, keys and values of new tokens by name. Out: names of what they attend to; the cache's new
state is an output of the graph. Knows nothing about weights, or about what is around attention.

A single token after many others is computed in a way of its own: the operator takes one head after the other and reads
the keys that several of them share once for each, which after 4,096 tokens takes as long as all weights do. So heads
are given to it as if they were tokens, which it multiplies with the keys together. It must not append anything then,
so another call has done that before, with as few heads as there are keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from onnx import TensorProto

from edge.export.graph.onnx.writer import CONTRIB, GraphWriter
from edge.runtime import bundle
from edge.runtime.graph_names import cached_names, past_name, present_name
from edge.runtime.spec import ModelSpec

# Heads as rows of one product, at most. The operator gives each product to one thread, so that there are graphs for few
# threads and for more; two rows were no faster than one.
JOINED, FEWEST_JOINED = (16, 4), 3


class Lengths(NamedTuple):
    """Values that tell attention how much of its buffers is filled."""

    last: str  # (B,) int32: index of each sequence's last token
    longest: str  # (1,) int32: tokens of the longest sequence


class Shown(NamedTuple):
    """Values that describe new tokens besides their ids, in graphs of models that see pictures."""

    mask: str  # (B, T, 1) bool: whose embedding is replaced
    rows: str  # (B, T, H) by what
    turns: str  # (B, T) int64: the row of the rotary tables that a token turns by


class Attention:
    """Emits the attention of a decoder's layers."""

    def __init__(
        self, writer: GraphWriter, spec: ModelSpec, lengths: Lengths, shown: Shown | None, tables: tuple[str, str]
    ) -> None:
        """tables: cos and sin that the operator turns queries and keys by; empty where they are turned before."""
        self._w, self._spec, self._lengths, self._shown, self._tables = writer, spec, lengths, shown, tables
        self._turns = int(bool(tables[0]))

    def of_tokens(self, x: str, layer: int, scope: str = "") -> str:
        """Attention of any new tokens (B, T, q_size + 2 kv_size)."""
        self._w.ops(
            "GroupQueryAttention",
            x,
            "",
            "",
            *map(past_name, cached_names([layer])),
            *self._lengths,
            *self._tables,
            *((self._shown.turns,) if self._turns and self._shown else ()),
            outputs=self._outputs(layer, scope),
            domain=CONTRIB,
            num_heads=self._spec.num_heads,
            kv_num_heads=self._spec.num_kv_heads,
            do_rotary=self._turns,
        )
        return self._outputs(layer, scope)[0]

    def by_length(self, x: str, layer: int, rows: int) -> str:
        """The same, with so many heads joined where there is one new token after many others."""

        def any_tokens(scope: str) -> Sequence[str]:
            self.of_tokens(x, layer, scope)
            return self._outputs(layer, scope)

        def one_token(scope: str) -> Sequence[str]:
            return self._of_one(x, layer, rows, scope)

        outputs = self._outputs(layer)
        self._w.either(self._is_one_late(x), one_token, any_tokens, outputs, [TensorProto.FLOAT] * len(outputs))
        return outputs[0]

    def _outputs(self, layer: int, scope: str = "") -> list[str]:
        """Names of what is attended to, and of the keys and values with those of the new tokens."""
        return [f"{scope}layers.{layer}.attn", *(f"{scope}{present_name(name)}" for name in cached_names([layer]))]

    def _is_one_late(self, x: str) -> str:
        """Whether there is one new token, of a single sequence, and many before it: (1,) bool."""
        name = "one_late_token"
        if not self._w.has(name):
            w = self._w
            new = w.op("ReduceProd", w.op("Shape", x, start=0, end=2), keepdims=1)
            late = w.op(
                "Greater", w.op("Cast", self._lengths.longest, to=TensorProto.INT64), w.ints(bundle.JOINED_FROM)
            )
            w.op("And", w.op("Equal", new, w.ints(1)), late, name=name)
        return name

    def _of_one(self, x: str, layer: int, rows: int, scope: str) -> Sequence[str]:
        """Attention of one token (1, 1, q_size + 2 kv_size), heads joined."""
        w, spec = self._w, self._spec
        heads, kept = spec.num_heads // rows, self._outputs(layer, scope)[1:]
        q, k, v = w.ops("Split", x, w.ints(spec.q_size, spec.kv_size, spec.kv_size), outputs=3, axis=-1)
        turn: tuple[str, ...] = ()  # (1, 1), the row of the tables
        if self._turns:
            last = w.op("Unsqueeze", w.op("Cast", self._lengths.last, to=TensorProto.INT64), w.ints(1))
            turn = (self._shown.turns if self._shown else last,)
        w.ops(
            "GroupQueryAttention",
            *(k, k, v),  # nobody reads what comes of the first
            *map(past_name, cached_names([layer])),
            *(*self._lengths, *self._tables, *turn),
            outputs=(f"{scope}unused", *kept),
            domain=CONTRIB,
            num_heads=spec.num_kv_heads,
            kv_num_heads=spec.num_kv_heads,
            do_rotary=self._turns,
        )
        by_head = w.op("Reshape", q, w.ints(1, heads, rows, spec.head_dim))
        as_tokens = w.op("Transpose", by_head, perm=[0, 2, 1, 3])
        found = w.op(
            "GroupQueryAttention",
            w.op("Reshape", as_tokens, w.ints(1, rows, heads * spec.head_dim)),
            *(w.op("Slice", new, w.ints(0), w.ints(0), w.ints(1)) for new in (k, v)),  # (1, 0, kv_size)
            *(*kept, *self._lengths, *self._tables),
            *(w.op("Expand", row, w.ints(1, rows)) for row in turn),
            domain=CONTRIB,
            num_heads=heads,
            kv_num_heads=spec.num_kv_heads,
            do_rotary=self._turns,
            causal=0,
        )
        by_token = w.op("Reshape", found, w.ints(1, rows, heads, spec.head_dim))
        ordered = w.op("Transpose", by_token, perm=[0, 2, 1, 3])
        return w.op("Reshape", ordered, w.ints(1, 1, spec.q_size)), *kept


def joined_choices(spec: ModelSpec) -> list[int]:
    """How many heads a product may take, the most first; none where joining so few as share keys gains nothing."""
    if spec.max_position_embeddings <= bundle.JOINED_FROM:
        return []
    shared = spec.num_heads // spec.num_kv_heads
    most = [max(rows for rows in range(1, limit + 1) if shared % rows == 0) for limit in JOINED]
    return [rows for rows in dict.fromkeys(most) if rows >= FEWEST_JOINED]
