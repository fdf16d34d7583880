"""What benchmarks/roofline.py keeps of a run that was ended, and its picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from roofline import JSON, SVG, measured, store, stored

POINT = {
    "bundle": "b4",
    "engine": "onnx",
    "step_ms_spread": 0.5,
    "weight_bytes": 1_000_000_000,
    "cache_bytes": 10_000_000,
    "machine_gbs": 40.0,
}


def point(context: int, sequences: int, step_ms: float, **other: Any) -> dict[str, Any]:
    return {**POINT, "context": context, "sequences": sequences, "step_ms": step_ms, **other}


def test_a_run_continues_with_what_was_measured(tmp_path: Path) -> None:
    report = stored(tmp_path / JSON)
    assert measured(report, "b4", "onnx") == set()
    report["points"] += [point(4096, 1, 32.0), point(1024, 1, 30.0), point(1024, 1, 29.0, engine="openvino")]
    store(tmp_path, report)
    again = stored(tmp_path / JSON)
    assert measured(again, "b4", "onnx") == {(1024, 1), (4096, 1)}
    assert measured(again, "b4", "openvino") == {(1024, 1)}
    assert measured(again, "b9", "onnx") == set()
    assert json.loads((tmp_path / JSON).read_text(encoding="utf-8")) == report
    assert (tmp_path / SVG).read_bytes().startswith(b"<?xml")


def test_the_same_points_give_the_same_picture_in_any_order(tmp_path: Path) -> None:
    points = [point(1024, 1, 30.0), point(4096, 1, 32.0), point(1024, 4, 45.0), point(1024, 1, 8.0, bundle="demo")]
    pictures = []
    for order in (points, points[::-1]):
        store(tmp_path, {"points": list(order)})
        pictures.append((tmp_path / SVG).read_bytes())
    assert pictures[0] == pictures[1]
