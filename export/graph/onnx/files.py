"""ONNX graphs whose weights are in a file already.

In: a `WeightStore` with all weights of a bundle. Out: the bundle's .onnx files, which point into the store's file, and
the few bytes that ONNX needs in another form: in a file of their own where OpenVINO reads the store too, else in the
store. Knows nothing about recipes.

What ONNX needs in another form: signed integers (its operators know unsigned ones around the middle of their range),
and zero points of 4 or 2 bits of rows that end inside a byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx

from edge.export.graph.onnx.attention import joined_choices
from edge.export.graph.onnx.models import decoder_part, decoder_parts, genai_decoder
from edge.export.graph.onnx.plain import plain_decoder
from edge.export.graph.onnx.writer import Array
from edge.export.tensors import PackedTensor, Weight, as_unsigned
from edge.export.weights.store import WeightStore
from edge.runtime import bundle
from edge.runtime.bundle import OnnxKernels
from edge.runtime.graph_names import SPEC
from edge.runtime.spec import ModelSpec


def write_onnx(store: WeightStore, spec: ModelSpec, folder: Path, *, pictures: bool = False) -> None:
    """Write every graph. pictures: whether our engine's graphs take more than ids. Raises OSError."""
    if store.path.name == bundle.ONNX_DATA:
        _write_graphs(store, store, spec, folder, pictures=pictures)
        return
    more = WeightStore(folder / bundle.ONNX_DATA, {}, 0)
    try:
        for name, weight in store.items():
            if isinstance(weight, PackedTensor) and weight.signed:
                more.put(name, as_unsigned(weight))
        _write_graphs(store, more, spec, folder, pictures=pictures)
    finally:
        more.close()
    if not more.end:
        more.path.unlink()


def _write_graphs(store: WeightStore, more: WeightStore, spec: ModelSpec, folder: Path, *, pictures: bool) -> None:
    weights: Mapping[str, Weight] = {**store, **more}
    constants = _InFiles(store, more)
    bits = {weight.bits for weight in weights.values() if isinstance(weight, PackedTensor)}
    for kernels in kernel_choices(spec, packed=bool(bits)):
        for index, layers in enumerate(decoder_parts(weights, spec)):
            part = decoder_part(weights, spec, layers, kernels, constants, pictures=pictures)
            _write(part, spec, folder / kernels.part(index))
    whole = genai_decoder(weights, spec, OnnxKernels(int8_activations=bool(bits & {2, 4})), constants)
    _write(whole, spec, folder / bundle.MODEL_ONNX)
    if not bits:
        _write(plain_decoder(weights, spec, constants), spec, folder / bundle.ONNX_PLAIN)


def kernel_choices(spec: ModelSpec, *, packed: bool) -> list[OnnxKernels]:
    """The choices that a bundle's graphs leave to a load. packed: whether any weights are."""
    joined = [OnnxKernels(joined_heads=rows) for rows in joined_choices(spec)]
    return [
        replace(kernels, int8_activations=int8)
        for int8 in ((False, True) if packed else (False,))
        for kernels in (OnnxKernels(), OnnxKernels(float16_cache=True), *joined)
    ]


def _write(model: onnx.ModelProto, spec: ModelSpec, path: Path) -> None:
    model.metadata_props.add(key=".".join(SPEC), value=spec.to_line())
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(path)


class _InFiles:
    """Constants in the files of a bundle; those that are in none are appended to the second."""

    def __init__(self, store: WeightStore, more: WeightStore) -> None:
        self._more = more
        self._places = {
            name: (file.path.name, *place) for file in (store, more) for name, place in file.constants.items()
        }

    def keep(self, name: str, values: Array, source: str) -> dict[str, str]:
        if source not in self._places:
            self._places[source] = (self._more.path.name, self._more.append(values), values.nbytes)
        location, offset, size = self._places[source]
        assert size == values.nbytes, f"{name} has {values.nbytes} bytes and {source} {size}"
        return {"location": location, "offset": str(offset), "length": str(size)}
