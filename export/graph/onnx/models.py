"""ONNX models of the whole decoder, of its parts, and of one stage.

In: a ModelSpec, a mapping from canonical weight name to weight, and where constants are kept. Out: `onnx.ModelProto`s:
the decoder that a bundle holds, in parts for our engine and whole for onnxruntime-genai, and small ones (the embedding,
one block, the head) for verification. Knows nothing about files, recipes or how weights were compressed.

Inputs are those of onnxruntime-genai's graphs: input_ids (B, T), attention_mask (B, past + T) padded on the right, and
past_key_values.N.{key,value} (B, n_kv, S, head_dim), which may be the buffers of present.N.{key,value} where S is large
enough. Our engine's graphs come in parts, since a session prepares its weights on one core and takes seconds for it;
hidden (B, T, H) goes from part to part. They are also given cos and sin, (S, rotary_dim / 2), of the positions to come,
and wanted_rows (R,), the tokens to return logits (B, R, vocab_size) for. Parts of a model that sees pictures take what
replaces embeddings as well, and for each new token the row of cos and sin that it turns by: its position need not be
its place in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto

from edge.export.graph import decoder
from edge.export.graph.onnx.attention import Lengths, Shown
from edge.export.graph.onnx.fused import OnnxBuilder, Value, all_rows, turned_by_attention
from edge.export.graph.onnx.writer import Constants, GraphWriter
from edge.export.tensors import Weight
from edge.export.weights.names import EMBEDDING, HEAD
from edge.runtime.bundle import OnnxKernels
from edge.runtime.graph_names import (
    HIDDEN,
    NEXT_HIDDEN,
    REPLACED,
    REPLACEMENTS,
    ROTARY_ROWS,
    ROTARY_TABLES,
    WANTED_ROWS,
    cached_names,
    past_name,
    present_name,
)
from edge.runtime.spec import ModelSpec

PART_BYTES = 1_250_000_000  # of weights in a part: small enough for four cores to share glm-4-9b, and no more parts


def decoder_parts(weights: Mapping[str, Weight], spec: ModelSpec) -> list[range]:
    """The layers of each part: of about the same bytes, and about PART_BYTES, the head counted to the last."""
    sizes = [
        sum(weight.nbytes for name, weight in weights.items() if name.startswith(f"layers.{layer}."))
        for layer in range(spec.num_layers)
    ]
    total = sum(sizes) + weights[EMBEDDING if spec.tied_embeddings else HEAD].nbytes
    number = max(min(round(total / PART_BYTES), spec.num_layers), 1)
    middles = np.cumsum(sizes) - np.array(sizes) / 2
    part_of = np.minimum(middles * number // total, number - 1).tolist()
    layers = [[layer for layer, part in enumerate(part_of) if part == index] for index in range(number)]
    return [range(own[0], own[-1] + 1) for own in layers if own]


def decoder_part(
    weights: Mapping[str, Weight],
    spec: ModelSpec,
    layers: range,
    kernels: OnnxKernels,
    constants: Constants,
    *,
    pictures: bool = False,
) -> onnx.ModelProto:
    """One part of the decoder over KV buffers, with logits of the tokens that `wanted_rows` names.

    pictures: whether rows may replace embeddings, and tokens have any positions.
    """
    w, last = GraphWriter(constants), layers.stop == spec.num_layers
    if layers.start == 0:
        start = w.input("input_ids", TensorProto.INT64, ["batch", "tokens"])
    else:
        start = w.input(HIDDEN, TensorProto.FLOAT, ["batch", "tokens", spec.hidden_size])
    lengths = _lengths(w, w.input("attention_mask", TensorProto.INT64, ["batch", "total"]))
    tables = None
    if pictures or turned_by_attention(spec):
        kind, half = _cache_kind(kernels) if turned_by_attention(spec) else TensorProto.FLOAT, spec.rotary_dim // 2
        cos, sin = (w.input(name, kind, ["positions", half]) for name in ROTARY_TABLES)
        tables = cos, sin
    cache = _cache_inputs(w, layers, spec, kernels)
    rows = w.input(WANTED_ROWS, TensorProto.INT64, ["rows"]) if last else ""
    pick_rows = (lambda hidden: w.op("Gather", hidden, rows, axis=1)) if last else all_rows
    shown = _shown(w, spec, first=layers.start == 0) if pictures else None
    builder = OnnxBuilder(w, weights, spec, kernels, lengths, tables, pick_rows, shown)
    x: Value = builder.embedding(start, "embed") if layers.start == 0 else start
    for layer in layers:
        x = decoder.block(builder, x, layer, spec)
    if last:
        w.op("Identity", builder.written(decoder.head(builder, x, spec)), name="logits")
        w.output("logits", TensorProto.FLOAT, ["batch", "rows", spec.vocab_size])
    else:
        w.op("Identity", builder.write(x), name=NEXT_HIDDEN)
        w.output(NEXT_HIDDEN, TensorProto.FLOAT, ["batch", "tokens", spec.hidden_size])
    _cache_outputs(w, cache, spec, kernels)
    return w.model(f"{spec.architecture}.{layers.start}")


def genai_decoder(
    weights: Mapping[str, Weight], spec: ModelSpec, kernels: OnnxKernels, constants: Constants
) -> onnx.ModelProto:
    """The whole as onnxruntime-genai takes it: with logits (B, 1, vocab_size) of each sequence's last token.

    It gives no input wanted_rows, pads the prompts of a batch on the right, and expects logits of all tokens of a graph
    whose shapes leave their number open (onnxruntime-genai 0.18, src/models/logits.cpp).
    """
    w = GraphWriter(constants)
    ids = w.input("input_ids", TensorProto.INT64, ["batch", "tokens"])
    lengths = _lengths(w, w.input("attention_mask", TensorProto.INT64, ["batch", "total"]))
    cache = _cache_inputs(w, range(spec.num_layers), spec, kernels)

    def last_rows(hidden: str) -> str:
        end = w.op("Sub", w.op("Shape", hidden, start=1, end=2), w.ints(1))
        row = w.op("Min", w.op("Cast", lengths.last, to=TensorProto.INT64), end)  # of the new tokens, (B,)
        return w.op("GatherND", hidden, w.op("Unsqueeze", row, w.ints(1, 2)), batch_dims=1)

    builder = OnnxBuilder(w, weights, spec, kernels, lengths, None, last_rows)
    w.op("Identity", builder.written(decoder.decoder(builder, ids, spec)), name="logits")
    w.output("logits", TensorProto.FLOAT, ["batch", 1, spec.vocab_size])
    _cache_outputs(w, cache, spec, kernels)
    return w.model(spec.architecture)


def block_model(weights: Mapping[str, Weight], layer: int, spec: ModelSpec, constants: Constants) -> onnx.ModelProto:
    """One decoder block in float32: hidden (B, T, H), attention_mask (B, past + T), past_key_values -> (B, T, H)."""
    w = GraphWriter(constants)
    hidden = w.input(HIDDEN, TensorProto.FLOAT, ["batch", "tokens", spec.hidden_size])
    lengths = _lengths(w, w.input("attention_mask", TensorProto.INT64, ["batch", "total"]))
    _cache_inputs(w, [layer], spec, OnnxKernels())
    builder = OnnxBuilder(w, weights, spec, OnnxKernels(), lengths)
    out = builder.write(decoder.block(builder, hidden, layer, spec))
    w.output(out, TensorProto.FLOAT, ["batch", "tokens", spec.hidden_size])
    return w.model(f"block.{layer}")


def embedding_model(weights: Mapping[str, Weight], spec: ModelSpec, constants: Constants) -> onnx.ModelProto:
    """The embedding alone: input_ids (B, T) -> (B, T, H)."""
    w = GraphWriter(constants)
    ids = w.input("input_ids", TensorProto.INT64, ["batch", "tokens"])
    builder = OnnxBuilder(w, weights, spec, OnnxKernels())
    out = builder.written(builder.embedding(ids, "embed"))
    w.output(out, TensorProto.FLOAT, ["batch", "tokens", spec.hidden_size])
    return w.model("embed")


def head_model(weights: Mapping[str, Weight], spec: ModelSpec, constants: Constants) -> onnx.ModelProto:
    """Final norm and vocabulary projection: hidden (B, T, H) -> logits (B, T, rows of the matrix)."""
    w = GraphWriter(constants)
    hidden = w.input(HIDDEN, TensorProto.FLOAT, ["batch", "tokens", spec.hidden_size])
    builder = OnnxBuilder(w, weights, spec, OnnxKernels())
    out = builder.written(decoder.head(builder, hidden, spec))
    w.output(out, TensorProto.FLOAT, ["batch", "tokens", "vocabulary"])
    return w.model("head")


def _lengths(w: GraphWriter, attention_mask: str) -> Lengths:
    counts = w.op("ReduceSum", attention_mask, w.ints(1), keepdims=0)
    last = w.op("Cast", w.op("Sub", counts, w.scalar(1)), name="last", to=TensorProto.INT32)
    longest = w.op("Cast", w.op("Shape", attention_mask, start=1), name="longest", to=TensorProto.INT32)
    return Lengths(last, longest)


def _shown(w: GraphWriter, spec: ModelSpec, *, first: bool) -> Shown:
    """Declare what tells of pictures. Where nothing is replaced, a single row stands for all: its dims are its own."""
    mask = w.input(REPLACED, TensorProto.BOOL, ["shown", "replaced", 1]) if first else ""
    rows = w.input(REPLACEMENTS, TensorProto.FLOAT, ["shown", "replaced", spec.hidden_size]) if first else ""
    return Shown(mask, rows, w.input(ROTARY_ROWS, TensorProto.INT64, ["batch", "tokens"]))


def _cache_inputs(w: GraphWriter, layers: Iterable[int], spec: ModelSpec, kernels: OnnxKernels) -> list[str]:
    """Declare the past of every returned name."""
    names = cached_names(layers)
    kind = _cache_kind(kernels)
    for name in names:
        w.input(past_name(name), kind, ["batch", spec.num_kv_heads, "buffer", spec.head_dim])
    return names


def _cache_outputs(w: GraphWriter, names: Iterable[str], spec: ModelSpec, kernels: OnnxKernels) -> None:
    for name in names:
        w.output(present_name(name), _cache_kind(kernels), ["batch", spec.num_kv_heads, "buffer", spec.head_dim])


def _cache_kind(kernels: OnnxKernels) -> int:
    return int(TensorProto.FLOAT16 if kernels.float16_cache else TensorProto.FLOAT)
