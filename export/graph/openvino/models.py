"""OpenVINO models of the whole decoder, of one stage, and of one matrix.

In: a ModelSpec and a mapping from canonical weight name to weight, which has to outlive the graph. Out: `ov.Model`s:
the stateful decoder that a bundle holds, and small stateless ones (one block, one linear, the head) for compression and
verification. Knows nothing about checkpoints, recipes or how weights were compressed.

Inputs of the stateful decoder are those of optimum-intel's exports, so that openvino_genai, optimum-intel and OpenVINO
Model Server open it: input_ids (B, T), attention_mask (B, past + T), position_ids (B, T), beam_idx (B,).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
import openvino as ov
import openvino.opset13 as op

from edge.export.graph import decoder
from edge.export.graph.openvino.builder import Cache, OpenVINOBuilder
from edge.export.graph.openvino.compression import COMPRESSION, compression_of
from edge.export.graph.openvino.ops import (
    i64,
    matrix,
    parameter,
    scaled_rows,
)
from edge.export.tensors import Weight
from edge.export.weights.names import EMBEDDING
from edge.runtime.graph_names import HIDDEN, SPEC
from edge.runtime.spec import ModelSpec


def stateful_decoder(weights: Mapping[str, Weight], spec: ModelSpec) -> ov.Model:
    """The whole decoder with its KV cache in state variables."""
    input_ids = parameter("input_ids", [-1, -1], ov.Type.i64)
    attention_mask = parameter("attention_mask", [-1, -1], ov.Type.i64)
    position_ids = parameter("position_ids", [-1, -1], ov.Type.i64)
    beam_idx = parameter("beam_idx", [-1], ov.Type.i32)
    cache = Cache(input_ids, attention_mask, beam_idx, spec)
    logits = decoder.decoder(OpenVINOBuilder(weights, position_ids, spec, cache), input_ids, spec)
    logits.output(0).set_names({"logits"})
    result = op.result(logits)
    result.set_friendly_name("logits")
    model = ov.Model([result], cache.sinks, [input_ids, attention_mask, position_ids, beam_idx], spec.architecture)
    _share_constants(model)
    _number_nodes(model)
    model.set_rt_info(spec.to_line(), list(SPEC))
    for key, value in compression_of(weights).items():
        model.set_rt_info(value, [*COMPRESSION, key])
    return model


def block_model(weights: Mapping[str, Weight], layer: int, spec: ModelSpec) -> ov.Model:
    """One decoder block without a cache: hidden (B, T, H) and position_ids (B, T) -> (B, T, H)."""
    hidden = parameter(HIDDEN, [-1, -1, spec.hidden_size], ov.Type.f32)
    position_ids = parameter("position_ids", [-1, -1], ov.Type.i64)
    out = decoder.block(OpenVINOBuilder(weights, position_ids, spec), hidden, layer, spec)
    return ov.Model([op.result(out)], [hidden, position_ids], f"block.{layer}")


def embedding_model(weights: Mapping[str, Weight], spec: ModelSpec) -> ov.Model:
    """The embedding alone: input_ids (B, T) -> (B, T, H)."""
    input_ids = parameter("input_ids", [-1, -1], ov.Type.i64)
    rows = op.gather(matrix(weights[EMBEDDING], EMBEDDING), input_ids, i64(0))
    return ov.Model([op.result(scaled_rows(rows, spec))], [input_ids], "embed")


def head_model(weights: Mapping[str, Weight], spec: ModelSpec) -> ov.Model:
    """Final norm and vocabulary projection: hidden (B, T, H) -> logits (B, T, vocab_size)."""
    hidden = parameter(HIDDEN, [-1, -1, spec.hidden_size], ov.Type.f32)
    logits = decoder.head(OpenVINOBuilder(weights, op.constant(np.zeros((1, 1), np.int64)), spec), hidden, spec)
    return ov.Model([op.result(logits)], [hidden], "head")


def linear_model(weights: Mapping[str, Weight], name: str) -> ov.Model:
    """One matrix product: x (B, T, K) -> (B, T, N) with the weight of this name."""
    x = parameter("x", [-1, -1, weights[name].shape[1]], ov.Type.f32)
    product = op.matmul(x, matrix(weights[name], name), False, True)
    product.set_friendly_name(name.removesuffix(".weight"))
    return ov.Model([op.result(product)], [x], name)


def _share_constants(model: ov.Model) -> None:
    """Make equal small constants one node: a third fewer nodes, which every later load walks many times."""
    first: dict[tuple[str, tuple[int, ...], bytes], ov.Node] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() not in (ov.Type.i64, ov.Type.f32):
            continue
        if math.prod(node.get_output_shape(0)) > 8:
            continue
        key = (str(node.get_element_type()), tuple(node.get_output_shape(0)), node.get_data().tobytes())
        shared = first.setdefault(key, node)
        if shared is not node:
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(shared.output(0))


def _number_nodes(model: ov.Model) -> None:
    """Name unnamed nodes by their place in the graph; OpenVINO's own numbers count all nodes a process ever made."""
    for index, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(rf"{node.get_type_name()}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")
