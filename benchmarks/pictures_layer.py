"""One layer of a picture tower at its published width, with random weights: what pictures.py measures without a model.

In: a kind of tower, a recipe's precision. Out: a graph in a folder, for each engine, and the layer's input. Knows
nothing about how it is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge.export.compress.nncf import Compressor
from edge.export.compress.precision import Precision
from edge.export.graph.onnx.tower import segment_model as onnx_layer
from edge.export.graph.openvino.tower import segment_model as openvino_layer
from edge.export.tensors import PackedTensor, as_unsigned
from edge.runtime.arrays import Array
from edge.runtime.bundle import VISION_BIN, vision_part
from edge.runtime.graph_names import HIDDEN, ROTARY_TABLES
from edge.runtime.vision.geometry import Grid
from edge.runtime.vision.preprocess import rotation
from edge.runtime.vision.spec import VisionSpec

COMMON: dict[str, Any] = {
    "patch_size": 14, "merge_size": 2, "out_size": 4096, "merger_eps": 1e-5, "mean": (0.0,) * 3, "std": (1.0,) * 3,
    "begin_id": 0, "placeholder_id": 0, "end_id": 0, "max_pictures": 0,
}  # fmt: skip
SPECS = {
    "GLM-4V-9B": VisionSpec(
        kind="eva", num_layers=63, hidden_size=1792, intermediate_size=15360, num_heads=16, norm_eps=1e-6, frames=1,
        image_size=1120, merger_size=13696, scale=8, min_pixels=0, max_pixels=0, **COMMON
    ),
    "GLM-4.1V-9B": VisionSpec(
        kind="glm4v", num_layers=24, hidden_size=1536, intermediate_size=13696, num_heads=12, norm_eps=1e-5, frames=2,
        image_size=336, merger_size=13696, scale=1, min_pixels=12544, max_pixels=9633792, **COMMON
    ),
}  # fmt: skip
SPREAD = 0.02  # of weights
ALONE = {"first": False, "last": False}


def write_layer(folder: Path, spec: VisionSpec, precision: str) -> None:
    """Write the graphs of one layer; the same weights before rounding each time."""
    folder.mkdir(parents=True)
    (folder / VISION_BIN).touch()
    chosen, compressor = Precision.parse(precision), Compressor()
    weights = {
        name: compressor.compress(name, value, chosen) if value.ndim == 2 and not chosen.is_float else value
        for name, value in _weights(spec).items()
    }
    import openvino as ov

    # A file of its own: OpenVINO writes it whole.
    (folder / "openvino").mkdir()
    ov.serialize(
        openvino_layer(weights, spec, range(1), **ALONE),
        folder / "openvino" / vision_part(0, "openvino"),
        folder / "openvino" / VISION_BIN,
    )
    unsigned = {name: as_unsigned(w) if isinstance(w, PackedTensor) else w for name, w in weights.items()}
    (folder / "onnx").mkdir()
    with (folder / "onnx" / VISION_BIN).open("wb") as file:
        model = onnx_layer(unsigned, spec, range(1), _Appended(file), **ALONE)
    (folder / "onnx" / vision_part(0, "onnx")).write_bytes(model.SerializeToString())


def write_input(path: Path, spec: VisionSpec, rows: int, columns: int) -> int:
    """Write the input of a layer for a picture of so many patches; return how many values a row it has."""
    grid = Grid(rows, columns)
    count = grid.patches + (spec.kind == "eva")
    hidden = np.random.default_rng(1).standard_normal((count, spec.hidden_size), np.float32)
    tables = dict(zip(ROTARY_TABLES, rotation(grid, spec), strict=True)) if spec.kind == "glm4v" else {}
    arrays: dict[str, Any] = {HIDDEN: hidden, **tables}
    np.savez(path, **arrays)
    return count


class _Appended:
    """Constants of an ONNX graph in an open file."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def keep(self, name: str, values: Array, source: str) -> dict[str, str]:  # noqa: ARG002
        begin = self._file.seek(-(-self._file.tell() // 4096) * 4096)
        self._file.write(np.ascontiguousarray(values).tobytes())
        return {"location": VISION_BIN, "offset": str(begin), "length": str(values.nbytes)}


def _weights(spec: VisionSpec) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    h, f, eva = spec.hidden_size, spec.intermediate_size, spec.kind == "eva"
    up = {"mlp.up": f} if eva else {"mlp.gate_up": 2 * f}
    widths = {"attn.qkv": (3 * h, h), "attn.o": (h, h), "mlp.down": (h, f), **{n: (w, h) for n, w in up.items()}}
    found: dict[str, Array] = {}
    for name, shape in widths.items():
        found[f"{name}.weight"] = rng.standard_normal(shape, np.float32) * np.float32(SPREAD)
        if eva:
            found[f"{name}.bias"] = rng.standard_normal(shape[0], np.float32) * np.float32(SPREAD)
    for norm in ("attn_norm", "mlp_norm"):
        found[f"{norm}.weight"] = np.ones(h, np.float32)
        if eva:
            found[f"{norm}.bias"] = np.zeros(h, np.float32)
    return {f"vision.layers.0.{name}": value for name, value in found.items()}
