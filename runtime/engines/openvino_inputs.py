"""What a decoder reads besides ids, for bundles of models that see pictures: other rows, and more than one position.

In: a graph whose attention is already paged, and a `ModelSpec`. Out: the same graph with more inputs. Knows nothing
about pictures.

The IR itself keeps the inputs that other tools expect. In a step without pictures, replacements of one token stand for
all, none of which are used, so it reads nothing more than before.
"""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset13 as op

from edge.runtime.errors import EXPORT_AGAIN, BundleError
from edge.runtime.graph_names import REPLACED, REPLACEMENTS
from edge.runtime.spec import ModelSpec

TURNS = "turns"  # input: (T, 1, rotary_dim / 2) float32, the position that each frequency of each token turns by


def take_replacements(model: ov.Model, spec: ModelSpec) -> None:
    """Let rows replace those of the embedding, before the power of two that its scale may differ by."""
    embedding = _behind(model, "input_ids", "Gather").output(0)
    mask = _parameter(REPLACED, [-1, 1, 1], ov.Type.boolean)
    rows = _parameter(REPLACEMENTS, [-1, 1, spec.hidden_size], ov.Type.f32)
    readers = list(embedding.get_target_inputs())
    chosen = op.select(mask, rows, embedding).output(0)
    for reader in readers:
        reader.replace_source_output(chosen)
    model.add_parameters([mask, rows])
    model.validate_nodes_and_infer_types()


def take_turns(model: ov.Model, spec: ModelSpec) -> None:
    """Let each frequency turn by a position of its own: by what TURNS says, instead of position_ids."""
    product = _behind(model, "position_ids", "Multiply")
    turns = _parameter(TURNS, [-1, 1, spec.rotary_dim // 2], ov.Type.f32)
    port = next(port for port in product.inputs() if port.get_source_output().get_node().get_type_name() != "Constant")
    port.replace_source_output(turns.output(0))
    model.add_parameters([turns])
    model.remove_parameter(model.input("position_ids").get_node())
    model.validate_nodes_and_infer_types()


def _behind(model: ov.Model, name: str, kind: str) -> Any:  # ov.Node, whose methods have no types
    """Return the first node of a kind that an input reaches, through nodes that change its type or shape only."""
    node = model.input(name).get_node()
    while node.get_type_name() != kind:
        readers = {reader.get_node().get_friendly_name(): reader.get_node() for reader in _readers(node)}
        following = [n for n in readers.values() if n.get_type_name() in (kind, "Unsqueeze", "Reshape", "Convert")]
        if len(following) != 1:
            raise BundleError(f"the graph does not read {name} as expected, so it takes no pictures; {EXPORT_AGAIN}")
        node = following[0]
    return node


def _readers(node: Any) -> list[Any]:
    return [reader for output in node.outputs() for reader in output.get_target_inputs()]


def _parameter(name: str, shape: list[int], kind: ov.Type) -> Any:
    parameter = op.parameter(ov.PartialShape(shape), kind, name=name)
    parameter.output(0).set_names({name})
    return parameter
