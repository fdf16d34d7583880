"""The golden picture is believed only as far as it is what export writes, and verifying a bundle runs it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.runtime.bundle import VISION_GOLDEN, record_of
from edge.runtime.errors import BundleError, VerificationError
from edge.runtime.exact import exact_settings
from edge.runtime.settings import EngineSettings
from edge.runtime.vision.golden_picture import MAX_PATCHES, read_golden_picture
from edge.runtime.vision.spec import TowerKind
from edge.runtime.vision.verify_tower import verify_tower
from tests.runtime.vision.towers import expected_rows, inputs_of, make_tower, spec_of, weights_of

Arrays = dict[str, npt.NDArray[Any]]
EVA = spec_of("eva")
ROWS = np.ones((18, EVA.out_size), np.float32)
ARRAYS: Arrays = {**inputs_of(EVA), "rows": ROWS, "float_rows": 2 * ROWS}


def npz(arrays: Arrays) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=True, **arrays)
    return stream.getvalue()


def without(name: str) -> Arrays:
    return {other: array for other, array in ARRAYS.items() if other != name}


def with_nan(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    changed = array.copy()
    changed.flat[3] = np.nan
    return changed


WRONG = {
    "empty": b"",
    "cut off": npz(ARRAYS)[:-30],
    "no patches": npz(without("patches")),
    "no rows": npz(without("rows")),
    "places of floats": npz({**ARRAYS, "places": ARRAYS["places"].astype(np.float32)}),
    "places beyond the table": npz({**ARRAYS, "places": ARRAYS["places"] + 1}),
    "negative places": npz({**ARRAYS, "places": ARRAYS["places"] - 2}),
    "fewer places": npz({**ARRAYS, "places": ARRAYS["places"][:-1]}),
    "other patches": npz({**ARRAYS, "patches": ARRAYS["patches"][:, :-1]}),
    "no patch": npz({**ARRAYS, "patches": ARRAYS["patches"][:0], "places": ARRAYS["places"][:0]}),
    "a scalar": npz({**ARRAYS, "patches": np.float32(1)}),  # type: ignore[dict-item]
    "too many patches": npz({**ARRAYS, "places": np.ones(MAX_PATCHES + 1, np.int64)}),
    "patches that are not finite": npz({**ARRAYS, "patches": with_nan(ARRAYS["patches"])}),
    "rows that are not finite": npz({**ARRAYS, "rows": with_nan(ROWS)}),
    "rows of zeros": npz({**ARRAYS, "float_rows": 0 * ROWS}),
    "fewer rows": npz({**ARRAYS, "rows": ROWS[:-1]}),
}


@pytest.mark.parametrize("kind", ["eva", "glm4v"])
def test_what_was_written_is_read(kind: TowerKind) -> None:
    spec, arrays = spec_of(kind), inputs_of(spec_of(kind))
    rows = expected_rows(spec, weights_of(spec), arrays)
    found = read_golden_picture(npz({**arrays, "rows": rows, "float_rows": 2 * rows}), spec)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.float_rows, 2 * rows)
    assert found.inputs.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.inputs[name], array)


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_anything_else_is_refused_in_words(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"^vision_golden\.npz .*; export the bundle again$"):
        read_golden_picture(content, EVA)


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_verifying_runs_a_picture(engine: str, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = make_tower(tmp_path / "b", tiny_bundle, EVA, weights_of(EVA))
    usual = EngineSettings(engine)
    exact, bound = exact_settings(usual)
    found = verify_tower(bundle, engine, exact, usual, bound)
    assert found is not None
    assert found.error < 3e-6  # as in test_tower
    assert 0.005 < found.loss < 0.03  # 1 % was added to the float rows; bfloat16 may add as much
    arrays = dict(np.load(bundle.path / VISION_GOLDEN))
    arrays["rows"] *= np.float32(1.01)
    (bundle.path / VISION_GOLDEN).write_bytes(npz(arrays))
    changed = {**bundle.manifest.files, VISION_GOLDEN: record_of(bundle.path / VISION_GOLDEN)}
    altered = replace(bundle, manifest=replace(bundle.manifest, files=changed))
    with pytest.raises(VerificationError, match=r"makes rows of a picture that differ by 0\.0099 of their scale"):
        verify_tower(altered, engine, exact, usual, bound)
    none = {name: file for name, file in changed.items() if name != VISION_GOLDEN}
    assert verify_tower(replace(bundle, manifest=replace(bundle.manifest, files=none)), engine, exact, usual, 1) is None
