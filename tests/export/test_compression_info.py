"""What a graph says about its weights is so, also where matrices differ."""

from __future__ import annotations

from pathlib import Path

import openvino as ov

from edge.export.graph.openvino.compression import COMPRESSION, compression_of
from edge.export.tensors import PackedTensor, Weight
from edge.runtime.bundle import MODEL_XML
from tests.export.packed import packed


def test_what_is_true_of_all_blocks_is_said() -> None:
    four = packed(4, signed=True, group_size=128)
    assert said(four, four) == {"mode": "int4_sym", "group_size": "128"}
    whole = packed(4, signed=True, group_size=256)
    assert said(whole, whole) == {"mode": "int4_sym", "group_size": "-1"}
    assert said(packed(4, signed=False, group_size=64, zero_point=True)) == {"mode": "int4_asym", "group_size": "64"}
    eight = packed(8, signed=True, group_size=256)
    assert said(eight, eight) == {"mode": "int8_sym", "group_size": "-1"}
    assert said(four, eight) == {"mode": "int4_sym", "group_size": "128"}  # NNCF names the 4 bits alone, too
    assert said(whole, eight) == {"mode": "int4_sym", "group_size": "-1"}


def test_nothing_is_said_of_what_differs() -> None:
    """A device that believed a wrong group_size would compute something else."""
    four, whole = packed(4, signed=True, group_size=128), packed(4, signed=True, group_size=256)
    assert said(four, whole) == {"mode": "int4_sym"}
    assert said(four, packed(4, signed=True, group_size=64)) == {"mode": "int4_sym"}
    assert said(four, packed(4, signed=False, group_size=128, zero_point=True)) == {"group_size": "128"}
    assert said(whole, packed(8, signed=True, group_size=64)) == {"mode": "int4_sym"}
    assert compression_of({"embed.weight": packed(8, signed=True, group_size=256)}) == {}
    assert said() == {}


def test_an_export_writes_it(int4_bundle: Path, tiny_bundle: Path) -> None:
    assert written(int4_bundle) == {"mode": "int4_asym", "group_size": "64"}
    assert written(tiny_bundle) == {"mode": "int8_asym", "group_size": "-1"}


def written(bundle: Path) -> dict[str, str]:
    model = ov.Core().read_model(bundle / MODEL_XML)
    paths = {key: [*COMPRESSION, key] for key in ("mode", "group_size")}
    return {key: model.get_rt_info(path).astype(str) for key, path in paths.items() if model.has_rt_info(path)}


def said(*matrices: PackedTensor) -> dict[str, str]:
    weights: dict[str, Weight] = {f"layers.{i}.mlp.down.weight": matrix for i, matrix in enumerate(matrices)}
    return compression_of(weights)
