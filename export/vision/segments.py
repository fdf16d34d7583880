"""The graphs of a tower's segments, over weights that are in a file already.

In: a `WeightStore` with all weights of a tower. Out: the .xml and .onnx files of a bundle, which point into it; what
ONNX needs in another form is appended. Knows nothing about recipes.

Segments are short, so that an engine holds little at a time and whoever waits is told, or can end it, between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from edge.export.tensors import FloatArray, PackedTensor, Weight, as_unsigned
from edge.export.vision.names import stages_of
from edge.export.weights.store import WeightStore
from edge.runtime.bundle import vision_part
from edge.runtime.graph_names import SPEC
from edge.runtime.vision.spec import VisionSpec

SEGMENT_BYTES = 300_000_000  # of weights in a segment, about at most
SEGMENT_LAYERS = 6  # at most


def segments_of(weights: Mapping[str, Weight], spec: VisionSpec) -> list[range]:
    """The layers of each segment. The first brings the patches, too, and the last the adapter."""
    first, *layers, last = (sum(weights[name].nbytes for name in stage.own(spec)) for stage in stages_of(spec))
    sizes = [first + layers[0], *layers[1:]] if layers else [first]
    sizes[-1] += last
    cuts, held = [0], 0
    for layer, size in enumerate(sizes):
        if layer > cuts[-1] and (held + size > SEGMENT_BYTES or layer - cuts[-1] == SEGMENT_LAYERS):
            cuts.append(layer)
            held = 0
        held += size
    return [range(start, stop) for start, stop in zip(cuts, [*cuts[1:], spec.num_layers], strict=True)]


def write_segments(store: WeightStore, spec: VisionSpec, folder: Path, *, openvino: bool, onnx: bool) -> int:
    """Write all graphs; returns how many segments there are. Raises OSError and RuntimeError."""
    segments = segments_of(store, spec)
    if openvino:
        from edge.export.graph.openvino.files import write_ir
        from edge.export.graph.openvino.tower import segment_model

        for index, layers in enumerate(segments):
            ends = {"first": index == 0, "last": index == len(segments) - 1}
            model = segment_model(store, spec, layers, **ends)
            model.set_rt_info(_line(spec), list(SPEC))
            write_ir(model, store, folder / vision_part(index, "openvino"))
    if onnx:
        _write_onnx(store, spec, segments, folder)
    return len(segments)


def _write_onnx(store: WeightStore, spec: VisionSpec, segments: list[range], folder: Path) -> None:
    import onnx

    from edge.export.graph.onnx.tower import segment_model

    weights, constants = _Unsigned(store), _InFile(store)
    for index, layers in enumerate(segments):
        ends = {"first": index == 0, "last": index == len(segments) - 1}
        model = segment_model(weights, spec, layers, constants, **ends)
        model.metadata_props.add(key=".".join(SPEC), value=_line(spec))
        path = folder / vision_part(index, "onnx")
        path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(path)


def _line(spec: VisionSpec) -> str:
    return json.dumps(spec.to_json(), sort_keys=True)


class _Unsigned(Mapping[str, Weight]):
    """A store's weights as ONNX's operators take them: a copy of each signed one, while it is used."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store

    def __getitem__(self, name: str) -> Weight:
        weight = self._store[name]
        return as_unsigned(weight) if isinstance(weight, PackedTensor) else weight

    def __contains__(self, name: object) -> bool:
        return name in self._store

    def __iter__(self) -> Iterator[str]:
        return iter(self._store)

    def __len__(self) -> int:
        return len(self._store)


class _InFile:
    """Constants in the store's file; integers with a sign, and what is not there at all, are appended."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store
        signed = {name for name, record in store.records.items() if record.signed}
        self._places = {name: place for name, place in store.constants.items() if name not in signed}

    def keep(self, name: str, values: FloatArray, source: str) -> dict[str, str]:
        if source not in self._places:
            self._places[source] = (self._store.append(values), values.nbytes)
        offset, size = self._places[source]
        assert size == values.nbytes, f"{name} has {values.nbytes} bytes and {source} {size}"
        return {"location": self._store.path.name, "offset": str(offset), "length": str(size)}
