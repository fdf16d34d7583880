"""The weights of a traced graph: which there are, what a recipe gives each, what they became.

In: OpenVINO's graph, and a recipe. Out: matrices by the name of their constant, and an assignment for each. Knows
nothing about checkpoints or about who made the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openvino as ov

from edge.export.assignment import Assignment, Assignments, assign_one
from edge.export.compress.precision import Precision, stored_bytes
from edge.export.compress.recipes import Recipe
from edge.export.weights.names import EMBEDDING, HEAD
from edge.runtime.errors import TensorError


@dataclass(frozen=True)
class Matrix:
    """A weight that products or look-ups read, compressed or not."""

    constant: Any  # the node that holds it
    shape: tuple[int, ...]  # (N, K), experts before them where there are some
    precision: Precision
    nbytes: int  # scales and zero points included
    readers: tuple[str, ...]  # names of the nodes
    kinds: frozenset[str]  # of the nodes: MatMul, Gather
    embeds: bool  # whether it is looked up by input_ids


def read_matrices(model: ov.Model) -> dict[str, Matrix]:
    """All weights of products and look-ups by the name of their constant, in the order of the graph."""
    found: dict[str, Matrix] = {}
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        for port in {"MatMul": (0, 1), "Gather": (0,)}.get(kind, ()):
            parts = _parts(node.input_value(port))
            if parts is None or not (len(parts) > 1 or parts[0].get_element_type().is_real()):
                continue
            shape = _rows_first(node, port)
            if sum(size > 1 for size in shape) < 2:  # frequencies of a rotary embedding
                continue
            name = parts[0].get_friendly_name().removesuffix("_compressed")  # which save_model adds
            before = found.pop(name, None)  # its place is that of its last reader
            found[name] = Matrix(
                parts[0],
                shape,
                _precision(parts, shape),
                sum(_nbytes(part) for part in parts),
                (*(before.readers if before else ()), node.get_friendly_name()),
                (before.kinds if before else frozenset()) | {kind},
                (before is not None and before.embeds) or (kind == "Gather" and _reads_input_ids(node)),
            )
    return found


def _parts(value: Any) -> list[Any] | None:
    """The constants that a value is made of: integers, scale, zero point, or floats alone. None for activations."""
    node, more = value.get_node(), []
    while node.get_type_name() != "Constant":
        kind = node.get_type_name()
        if kind in ("Multiply", "Subtract"):
            other = _parts(node.input_value(1))
            if other is None:
                return None
            more.append(other[0])
        elif kind not in ("Convert", "Reshape", "Transpose"):
            return None
        node = node.input_value(0).get_node()
    return [node, *more]


def _rows_first(node: Any, port: int) -> tuple[int, ...]:
    """Shape of the weight at this port, the axis that a product sums over last."""
    shape = list(node.input_value(port).get_shape())
    if node.get_type_name() == "MatMul" and len(shape) > 1:
        attributes = node.get_attributes()
        if not (attributes["transpose_b"] if port else not attributes["transpose_a"]):
            shape[-2:] = shape[:-3:-1]
    return tuple(shape)


def _precision(parts: list[Any], shape: tuple[int, ...]) -> Precision:
    kind = parts[0].get_element_type()
    if kind.is_real():
        return Precision(kind.bitwidth)
    groups = math.prod(parts[1].get_shape()) // math.prod(shape[:-1])  # in a row
    return Precision(kind.bitwidth, len(parts) == 2, shape[-1] // groups if groups > 1 else 0)


def _nbytes(constant: Any) -> int:
    bits: int = math.prod(constant.get_shape()) * constant.get_element_type().bitwidth
    return -(-bits // 8)


def _reads_input_ids(gather: Any) -> bool:
    node = gather.input_value(1).get_node()
    while node.get_type_name() in ("Convert", "Reshape", "Squeeze", "Unsqueeze"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Parameter" and "input_ids" in node.output(0).get_names()


def wanted(matrices: Mapping[str, Matrix], recipe: Recipe) -> Assignments:
    """The precision that a recipe gives each matrix. Only precisions: traced graphs are compressed without text."""
    found = []
    for name, matrix in matrices.items():
        rows = (math.prod(matrix.shape[:-1]), matrix.shape[-1])
        asked = assign_one(recipe, _role(name, matrices), rows)
        precision, why = asked.precision, asked.why
        if "MatMul" not in matrix.kinds and not matrix.embeds:
            precision = Precision(16 if recipe.linear.bits == 16 else 32)
            why = "look-up tables other than the embedding stay float"
        size = stored_bytes(precision, rows)
        found.append(Assignment(name, asked.stage, matrix.shape, precision, 0, "off", size, why))
    return Assignments(found)


def became(matrices: Mapping[str, Matrix], asked: Assignments) -> Assignments:
    """What the matrices of a finished graph are, beside what each of them was to be."""
    found = []
    for name, matrix in matrices.items():
        assigned, precision = asked[name], matrix.precision
        planned = assigned.precision
        if precision == replace(planned, group_size=planned.group_size % matrix.shape[-1]):  # one group is a whole row
            precision, why = planned, assigned.why
        else:
            why = f"nncf gave it this and not {planned}"
        found.append(replace(assigned, precision=precision, nbytes=matrix.nbytes, why=why))
    return Assignments(found)


def _role(name: str, matrices: Mapping[str, Matrix]) -> str:
    """A matrix's name in recipes."""
    if matrices[name].embeds:
        return EMBEDDING
    head = [other for other, matrix in matrices.items() if "MatMul" in matrix.kinds][-1]  # it needs all other products
    return HEAD if name == head else name


def check_float16_range(matrices: Mapping[str, Matrix]) -> None:
    """Raises TensorError for a weight that float16 cannot hold."""
    for name, matrix in matrices.items():
        largest = np.abs(matrix.constant.data).max()
        if largest > np.finfo(np.float16).max:
            raise TensorError(f"{name} reaches {largest:.3g}, beyond float16; use recipe fp32 or an int8 one")
