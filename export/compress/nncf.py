"""Weight compression by NNCF; the only file that imports it.

In: float weights in any dtype and a `Precision` for each. Out: `PackedTensor`s with exactly the integers, scales and
zero points that `nncf.compress_weights` chooses. Where nothing is fitted to inputs, `data_free.py` makes the same bytes
in a quarter of the time: NNCF is given rows of the first matrix of each kind, and does all the work where it makes
other bytes of them. It sees one matrix, or some rows of it, at a time; only a graph made by another exporter
(`compress_model`) is compressed whole. Knows nothing about checkpoints or files.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import openvino as ov

from edge.export.compress import data_free
from edge.export.compress.precision import CHUNK, WHOLE, Precision
from edge.export.graph.openvino.models import linear_model
from edge.export.tensors import Bytes, Float32Array, FloatArray, PackedTensor, write_float32
from edge.runtime.engines.openvino_core import in_own_thread
from edge.runtime.errors import RecipeError

COMPARED = 1 << 18  # weights, at most, by which the two ways to round are compared
SAMPLE = 512  # inputs that nncf looks at together
# What nncf does with inputs: fit scales, or make up for what rounding lost. The names are those of its options.
Fitting = Literal["scale_estimation", "gptq"]


class Compressor:
    """Compresses one matrix after the other.

    nncf gets float32 from one buffer that is kept: it allocates a third less for that than for the 16 bits of the
    checkpoint, and fresh memory takes it as long as its arithmetic (docs/findings.md).

    at_once: weights that are rounded together, where memory is scarce. Rows are independent, so the bytes are the same.
    """

    def __init__(self, at_once: int | None = None) -> None:
        self._whole, self._chunk = (WHOLE, CHUNK) if at_once is None else (at_once, at_once)
        self._buffer = np.empty(0, np.float32)
        self._agreed: dict[tuple[Precision, int], bool] = {}  # of precisions and widths that were compared

    def compress(self, name: str, weight: FloatArray, precision: Precision) -> PackedTensor:
        """Compress the (N, K) matrix of this canonical name. Raises RecipeError where nncf does something else."""
        if data_free.fits(weight.shape, precision) and self._agrees(name, weight, precision):
            return data_free.compress(weight, precision)
        return self.by_nncf(name, weight, precision)

    def _agrees(self, name: str, weight: FloatArray, precision: Precision) -> bool:
        """Whether both ways to round make the same bytes of rows like these."""
        kind = precision, weight.shape[1]
        if kind not in self._agreed:
            rows = weight[: max(COMPARED // weight.shape[1], 1)]
            theirs, ours = self.by_nncf(name, rows, precision), data_free.compress(rows, precision)
            self._agreed[kind] = same_bytes(theirs, ours)
        return self._agreed[kind]

    def by_nncf(self, name: str, weight: FloatArray, precision: Precision) -> PackedTensor:
        """Like `compress`, by nncf itself."""
        n, k = weight.shape
        if weight.size <= self._whole:
            return _compress(name, self._float32(weight), precision)
        data: Bytes = np.empty(-(-n * k * precision.bits // 8), np.uint8)  # filled in place: it can be half a gigabyte
        step, chunks = max(self._chunk // k, 1), []
        for start in range(0, n, step):
            chunk = _compress(name, self._float32(weight[start : start + step]), precision)
            begin = start * k * precision.bits // 8
            data[begin : begin + chunk.data.size] = chunk.data
            chunks.append(replace(chunk, data=data))
        zeros = [chunk.zero_point for chunk in chunks if chunk.zero_point is not None]
        return replace(
            chunks[0],
            shape=(n, k),
            scale=np.concatenate([chunk.scale for chunk in chunks]),
            zero_point=np.concatenate(zeros) if zeros else None,
        )

    def fit(
        self, name: str, weight: FloatArray, precision: Precision, inputs: Float32Array, fitting: Fitting
    ) -> PackedTensor:
        """Like `compress`, fitted by nncf to inputs (T, K)."""
        return _compress(name, self._float32(weight), precision, inputs, fitting)

    def _float32(self, rows: FloatArray) -> Float32Array:
        if rows.dtype == np.float32 and rows.flags.c_contiguous:  # a constant takes bytes as they lie in memory
            return rows
        if self._buffer.size < rows.size:
            self._buffer = np.empty(rows.size, np.float32)
        wide = self._buffer[: rows.size].reshape(rows.shape)
        write_float32(rows, wide)
        return wide


def same_bytes(one: PackedTensor, other: PackedTensor) -> bool:
    """Whether two tensors are stored alike, scales that are not numbers included."""
    return (
        (one.shape, one.bits, one.signed, one.group_size) == (other.shape, other.bits, other.signed, other.group_size)
        and np.array_equal(one.data, other.data)
        and np.array_equal(one.scale.view(np.uint16), other.scale.view(np.uint16))
        and (one.zero_point is None) == (other.zero_point is None)
        and (one.zero_point is None or other.zero_point is None or np.array_equal(one.zero_point, other.zero_point))
    )


def _compress(
    name: str,
    rows: Float32Array,
    precision: Precision,
    inputs: Float32Array | None = None,
    fitting: Fitting = "scale_estimation",
) -> PackedTensor:
    """One call of nncf."""
    model, layer = linear_model({name: rows}, name), name.removesuffix(".weight")
    compress_model(model, {layer: precision}, inputs, fitting)
    product = next(node for node in model.get_ops() if node.get_friendly_name() == layer)
    return _extract(product, name, precision)


def compress_model(
    model: ov.Model,
    plan: Mapping[str, Precision],
    inputs: Float32Array | None = None,
    fitting: Fitting = "scale_estimation",
) -> None:
    """Compress the weights of the nodes that the plan names, products and look-ups, in place; others are left alone.

    inputs: (T, K), values of the model's only input, to fit the matrix that multiplies it.
    """
    # One call for each precision in the plan, which leaves out every other node that has weights.
    weighted = [
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() in ("MatMul", "Gather") or "Convolution" in node.get_type_name()
    ]
    with alone() as nncf:
        for precision in dict.fromkeys(plan.values()):
            others = [name for name in weighted if plan.get(name) != precision]
            options: dict[str, Any] = {}
            if precision.bits == 4:
                options = {"group_size": precision.group_size or -1, "ratio": 1.0, "all_layers": True}
                if inputs is not None:
                    samples = [inputs[None, start : start + SAMPLE] for start in range(0, len(inputs), SAMPLE)]
                    options |= {"dataset": nncf.Dataset(samples), fitting: True, "subset_size": len(samples)}
            kind = f"INT{precision.bits}_{'SYM' if precision.symmetric else 'ASYM'}"
            in_own_thread(
                nncf.compress_weights,
                model,
                mode=nncf.CompressWeightsMode[kind],
                ignored_scope=nncf.IgnoredScope(names=others, validate=False),
                **options,
            )


def _extract(matmul: Any, name: str, precision: Precision) -> PackedTensor:
    """Read a compressed weight back from the graph: Constant -> Convert -> [Subtract] -> Multiply -> ..."""
    node = matmul.input_value(1).get_node()
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Multiply":
        raise RecipeError(f"nncf left {name} uncompressed ({node.get_type_name()}), expected {precision}")
    scale = _constant(node.input_value(1))
    node, zero_point = node.input_value(0).get_node(), None
    if node.get_type_name() == "Subtract":
        zero_point = _packed_bytes(_constant(node.input_value(1)))
        node = node.input_value(0).get_node()
    integers = _constant(node.output(0))
    shape = list(integers.get_output_shape(0))
    kind = ("i" if precision.symmetric else "u") + str(precision.bits)
    if integers.get_element_type().get_type_name() != kind:
        raise RecipeError(f"nncf stored {name} as {integers.get_element_type()}, expected {kind}")
    n, k = shape[0], math.prod(shape[1:])
    group_size = shape[2] if len(shape) == 3 else k
    if group_size != (precision.group_size or k):
        raise RecipeError(f"nncf chose groups of {group_size} for {name}, expected {precision.group_size or k}")
    values: npt.NDArray[np.float16] = np.array(scale.get_data(), np.float16).reshape(n, k // group_size)
    return PackedTensor(
        (n, k), precision.bits, precision.symmetric, group_size, _packed_bytes(integers), values, zero_point
    )


def _constant(output: Any) -> Any:
    """The constant that an output comes from, through conversions."""
    node = output.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    assert node.get_type_name() == "Constant", f"{node} where nncf writes a constant"
    return node


def _packed_bytes(constant: Any) -> Bytes:
    """A constant's raw bytes, as a view that keeps the constant alive."""
    data: Bytes = constant.data.reshape(-1).view(np.uint8)
    return data


@contextlib.contextmanager
def alone() -> Iterator[ModuleType]:
    """nncf by itself: it would import torch where that is installed, report to a server, print tables, and log.

    Its import changes the class of all later loggers, and its `set_log_level` the levels of handlers that a program has
    added to its logger (nncf/common/logging/logger.py, 3.4.0); so this sets the level of the logger alone.

    None in `sys.modules` makes an import fail, and nncf then does without it (nncf/tensor/functions/__init__.py and
    nncf/telemetry/wrapper.py, 3.4.0). A torch that is loaded already stays; the block's end restores everything.
    """
    hidden = ("torch", "openvino_telemetry")
    before = {name: sys.modules[name] for name in hidden if name in sys.modules}
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    kind_of_logger = logging.getLoggerClass()
    try:
        import nncf

        logging.setLoggerClass(kind_of_logger)
        logging.getLogger("nncf").setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            yield nncf
    finally:
        for name in hidden:
            del sys.modules[name]
        sys.modules.update(before)
