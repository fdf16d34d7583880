"""Bundles with a tiny tower, and what its rows should be: the graphs that an export writes, over random weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov

from edge.export.graph import tower_numpy
from edge.export.graph.onnx.tower import segment_model as onnx_segment
from edge.export.graph.openvino.tower import segment_model as openvino_segment
from edge.runtime.arrays import Array, Hidden
from edge.runtime.bundle import VISION_BIN, VISION_GOLDEN, Bundle, open_bundle, record_of, vision_part
from edge.runtime.tensor_records import TensorRecord
from edge.runtime.vision.picture import Picture
from edge.runtime.vision.preprocess import tower_inputs
from edge.runtime.vision.record import VisionRecord
from edge.runtime.vision.spec import TowerKind, VisionSpec

Weights = dict[str, Any]  # of arrays, which the graphs' builders take


def spec_of(kind: TowerKind, layers: int = 3) -> VisionSpec:
    eva = kind == "eva"
    return VisionSpec(
        kind=kind,
        num_layers=layers,
        hidden_size=64,
        intermediate_size=96,
        num_heads=4,
        norm_eps=1e-6,
        patch_size=4,
        frames=1 if eva else 2,
        image_size=32,
        merge_size=2,
        out_size=48,
        merger_size=80,
        merger_eps=1e-5,
        scale=8.0 if eva else 1.0,
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.26, 0.27),
        min_pixels=0 if eva else 2 * 16 * 16,
        max_pixels=0 if eva else 2 * 64 * 64,
        begin_id=261,
        placeholder_id=265,
        end_id=262,
        max_pictures=0,
    )


def weights_of(spec: VisionSpec, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    h, f, out, m = spec.hidden_size, spec.intermediate_size, spec.out_size, spec.merger_size
    eva = spec.kind == "eva"
    shapes: dict[str, tuple[int, ...]] = {
        "patches.weight": (h, spec.patch_values), "patches.bias": (h,), "places.weight": (spec.side**2 + eva, h),
        "merge.weight": (out, 4 * h), "merge.bias": (out,), "adapter.proj.weight": (out, out),
        "adapter.norm.weight": (out,), "adapter.norm.bias": (out,), "adapter.gate_up.weight": (2 * m, out),
        "adapter.down.weight": (out, m),
    }  # fmt: skip
    ends = {"cls": (1, h), "begin": (1, out), "end": (1, out)}
    shapes |= ends if eva else {"patches_norm.weight": (h,), "norm.weight": (h,)}
    for layer in range(spec.num_layers):
        mlp = {"up.weight": (f, h), "up.bias": (f,), "down.weight": (h, f), "down.bias": (h,)}
        gated = {"gate_up.weight": (2 * f, h), "down.weight": (h, f)}
        of_layer: dict[str, tuple[int, ...]] = {"attn.qkv.weight": (3 * h, h), "attn.o.weight": (h, h)}
        of_layer |= {f"mlp.{name}": shape for name, shape in (mlp if eva else gated).items()}
        of_layer |= {f"{norm}.weight": (h,) for norm in ("attn_norm", "mlp_norm")}
        if eva:
            of_layer |= {"attn.qkv.bias": (3 * h,), "attn.o.bias": (h,)}
            of_layer |= {f"{norm}.bias": (h,) for norm in ("attn_norm", "mlp_norm")}
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    return {
        f"vision.{name}": (rng.standard_normal(shape) * 0.15 + ("norm.weight" in name)).astype(np.float32)
        for name, shape in sorted(shapes.items())
    }


def make_tower(
    folder: Path,
    text: Path,
    spec: VisionSpec,
    weights: Weights,
    formats: tuple[str, ...] = ("openvino", "onnx"),
    segments: int = 3,
) -> Bundle:
    """Write the tower's files beside a manifest that is a text bundle's otherwise."""
    folder.mkdir(exist_ok=True)
    (folder / VISION_BIN).write_bytes(b"")
    layers, names = spec.num_layers // segments, [VISION_BIN]
    for index in range(segments):
        first, last = index == 0, index == segments - 1
        part = range(index * layers, spec.num_layers if last else (index + 1) * layers)
        if "openvino" in formats:
            names.append(vision_part(index, "openvino"))
            _write_ir(folder / names[-1], openvino_segment(weights, spec, part, first=first, last=last))
        if "onnx" in formats:
            names.append(vision_part(index, "onnx"))
            onnx.save(onnx_segment(weights, spec, part, _Appended(folder), first=first, last=last), folder / names[-1])
    arrays = inputs_of(spec)
    rows = expected_rows(spec, weights, arrays)
    np.savez(folder / VISION_GOLDEN, **arrays, rows=rows, float_rows=rows + np.float32(0.01) * rows[::-1])  # type: ignore[arg-type]
    names.append(VISION_GOLDEN)
    matrices = {name: value for name, value in weights.items() if value.ndim == 2}
    record = VisionRecord(
        spec=spec,
        recipe="fp32",
        bits_per_weight=32,
        weight_bytes=sum(value.nbytes for value in weights.values()),
        segments=segments,
        checks=(),
        largest={},
        tensors={name: TensorRecord(value.shape, "fp32", value.nbytes, "") for name, value in matrices.items()},
    )
    manifest = open_bundle(text).manifest
    files = {**manifest.files, **{name: record_of(folder / name) for name in names}}
    return Bundle(folder, replace(manifest, vision=record, files=files))


class _Appended:
    """Constants of an ONNX graph, at the end of the shared file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / VISION_BIN

    def keep(self, name: str, values: Array, source: str) -> dict[str, str]:
        return {
            "location": VISION_BIN,
            "offset": str(_append(self._path, values.tobytes())),
            "length": str(values.nbytes),
        }


def _append(path: Path, content: bytes) -> int:
    """Return where it begins."""
    begin = path.stat().st_size
    with path.open("ab") as file:
        file.write(content + b"\0" * (-len(content) % 4096))
    return begin


def _write_ir(path: Path, model: ov.Model) -> None:
    """Write a graph whose weights follow those of earlier graphs in the shared file."""
    weights, own = path.with_name(VISION_BIN), path.with_suffix(".own")
    ov.serialize(model, path, own)
    begin = _append(weights, own.read_bytes())
    moved = re.sub(r'offset="(\d+)"', lambda found: f'offset="{begin + int(found[1])}"', path.read_text())
    path.write_text(moved)
    own.unlink()


def expected_rows(spec: VisionSpec, weights: Mapping[str, Any], arrays: Mapping[str, Array]) -> Hidden:
    return tower_numpy.segment(weights, arrays, spec, range(spec.num_layers), first=True, last=True)


def picture_of(seed: int = 0, width: int = 40, height: int = 28) -> Picture:
    return Picture.of(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def inputs_of(spec: VisionSpec, seed: int = 0) -> dict[str, Array]:
    return tower_inputs(picture_of(seed), spec)
