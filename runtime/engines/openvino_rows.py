"""Logits of the wanted rows only: whatever a graph computes after its last attention is cut down to those rows.

In: a graph whose attention is already paged. Out: the same graph with one more input, WANTED_ROWS. Knows nothing about
caches or settings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as op

from edge.runtime.graph_names import ATTENTION_OUT, ATTENTION_RESIDUAL, WANTED_ROWS


def keep_wanted_rows(model: ov.Model) -> None:
    """Drop all other rows as soon as they are no longer needed.

    That is after the last attention, where every token has left its keys and values: the last block's MLP and the
    vocabulary projection then see only the wanted rows.
    """
    rows = op.parameter(ov.PartialShape([-1]), ov.Type.i64, name=WANTED_ROWS)
    rows.output(0).set_names({WANTED_ROWS})
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    residuals = [name for name in nodes if name.endswith(ATTENTION_RESIDUAL)]
    if residuals:
        skipped, _ = nodes[residuals[-1]].inputs()  # the input that attention is added to
        projection = residuals[-1].removesuffix(ATTENTION_RESIDUAL) + ATTENTION_OUT
        ports = [nodes[projection].input(0), skipped]
    else:  # not one of our graphs
        ports = [head_input(model)]
    for port in ports:
        axis = op.constant(np.int64(_token_axis(port)))
        port.replace_source_output(op.gather(port.get_source_output(), rows, axis).output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()


def head_input(model: ov.Model) -> Any:  # ov.Input, which has no types
    """Return the port where hidden states enter the vocabulary projection, or else where logits leave the graph.

    After the projection, only operations that treat every row alike are allowed (a bias, a scale, a soft cap): those
    with one varying input. An operation with several, such as a reshape to a computed shape, might count rows itself.
    """
    result = model.output("logits").get_node()
    node = result
    while True:
        varying = [port for port in node.inputs() if not _is_constant(port.get_source_output().get_node())]
        if len(varying) != 1:
            return result.input(0)
        if node.get_type_name() == "MatMul":
            return varying[0]
        node = varying[0].get_source_output().get_node()


def _is_constant(node: Any) -> bool:
    """Whether a node is a constant, or decompresses one."""
    kind = node.get_type_name()
    return kind == "Constant" or (
        kind in ("Convert", "Subtract", "Multiply", "Reshape", "Transpose")
        and all(_is_constant(value.get_node()) for value in node.input_values())
    )


def _token_axis(port: Any) -> int:
    """Return the axis of tokens: paged attention turns (B, T, H) into (T, 1, H), and leaves (T, H) as it is."""
    shape = port.get_partial_shape()
    return next((axis for axis in range(len(shape)) if shape[axis].is_dynamic), 0)
