"""An ONNX graph while it is written: nodes, small constants, and weights that stay in their files.

In: operations, one after the other, by the names of their values. Out: an `onnx.ModelProto`. Values are strings, as
they are in ONNX. Knows nothing about decoders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

# onnx writes newer files than runtimes read (onnx 1.23: IR 14, onnxruntime 1.31: up to 13): versions are chosen here.
IR_VERSION = 10  # of ONNX 1.16; every onnxruntime since 1.18 reads it
OPSET = 18
CONTRIB = "com.microsoft"  # onnxruntime's own operators
INLINE_BYTES = 1024  # constants up to this size are in the graph itself

Array = npt.NDArray[Any]  # of any dtype
Attribute = int | float | str | Sequence[int]  # of an operation
Branch = Callable[[str], Sequence[str]]  # given what the names of its values begin with, writes them
KINDS = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.uint8): TensorProto.UINT8,
}


class Constants(Protocol):
    """Where large constants are kept."""

    def keep(self, name: str, values: Array, source: str) -> dict[str, str]:
        """Entries that say where tensor `name` is: external_data of ONNX. Raises OSError.

        source: the weight that has these bytes, which several tensors of other shapes may share.
        """


class Borrowed:
    """Constants that stay in memory; what runs the graph is given them by name."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}

    def keep(self, name: str, values: Array, source: str) -> dict[str, str]:  # noqa: ARG002
        self.arrays[name] = np.ascontiguousarray(values)
        return {"location": "memory"}


class GraphWriter:
    """Collects a graph. Methods that make values return their names."""

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._values: set[str] = set()  # outputs of nodes
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._domains = {"": OPSET}
        self._scope = ""  # begins the names of values in a branch

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """A graph input; named dims vary."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, kind: int, shape: Sequence[int | str]) -> None:
        """Make a value an output of the graph."""
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def constant(self, name: str, values: Array, source: str = "") -> str:
        """A constant by this name, which means the same values wherever it is used.

        source: the weight whose values these are in another shape, where that is not the name.
        """
        if name not in self._initializers:
            tensor = TensorProto(name=name, data_type=KINDS[values.dtype], dims=values.shape)
            if values.nbytes <= INLINE_BYTES:
                tensor.raw_data = np.ascontiguousarray(values).tobytes()
            else:
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in self._constants.keep(name, values, source or name).items():
                    tensor.external_data.add(key=key, value=value)
            self._initializers[name] = tensor
        return name

    def ints(self, *values: int) -> str:
        """A constant vector of int64."""
        return self.constant("ints/" + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """A constant scalar: int64 or float32, as the number is."""
        kind = np.int64 if isinstance(value, int) else np.float32
        return self.constant(f"{kind.__name__}/{value!r}", np.array(value, kind))

    def has(self, name: str) -> bool:
        """Whether an operation has an output of this name already."""
        return name in self._values

    def op(self, kind: str, *inputs: str, name: str = "", domain: str = "", **attributes: Attribute) -> str:
        """One operation with one output, called `name` or by its place in the graph. An input left out is ""."""
        return self.ops(kind, *inputs, outputs=(name,) if name else 1, domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outputs: Sequence[str] | int, domain: str = "", **attributes: Attribute
    ) -> Sequence[str]:
        """One operation with these outputs, or this many; outputs that are not wanted are ""."""
        if isinstance(outputs, int):
            outputs = [f"{self._scope}{kind}_{len(self._nodes)}_{index}" for index in range(outputs)]
        self._domains.setdefault(domain, 1)
        self._values.update(outputs)
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        self._nodes.append(helper.make_node(kind, inputs, outputs, outputs[0], domain=domain, **attributes))
        return outputs

    def either(self, condition: str, yes: Branch, no: Branch, outputs: Sequence[str], kinds: Sequence[int]) -> None:
        """Values that one of two branches makes, as a condition of one bool says. They see all that was made before.

        kinds: the types of the outputs. A branch returns the names of its own, which differ from those.
        """
        graphs = [self._branch(f"{outputs[0]}/{word}", branch, kinds) for word, branch in (("yes", yes), ("no", no))]
        self._values.update(outputs)
        node = helper.make_node("If", [condition], outputs, outputs[0], then_branch=graphs[0], else_branch=graphs[1])
        self._nodes.append(node)

    def _branch(self, name: str, branch: Branch, kinds: Sequence[int]) -> onnx.GraphProto:
        kept = self._nodes, self._scope
        self._nodes, self._scope = [], f"{name}/"
        made = branch(self._scope)
        graph_outputs = [
            helper.make_tensor_value_info(value, kind, None) for value, kind in zip(made, kinds, strict=True)
        ]
        graph = helper.make_graph(self._nodes, name, [], graph_outputs)
        self._nodes, self._scope = kept
        return graph

    def model(self, name: str) -> onnx.ModelProto:
        """The graph as a model."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._initializers.values()))
        opsets = [helper.make_opsetid(domain, version) for domain, version in self._domains.items()]
        return helper.make_model(graph, producer_name="edgeglm", opset_imports=opsets, ir_version=IR_VERSION)
