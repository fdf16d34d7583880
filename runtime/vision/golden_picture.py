"""The golden picture in a bundle: a small one as the tower takes it, and the rows that it became at export.

In: the bytes of vision_golden.npz, and a tower's record. Out: arrays, or a BundleError. Nothing in the file is trusted
before it is checked: neither an array's unpacked size, nor its type or shape.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge.runtime.array_files import UnexpectedArray, read_array
from edge.runtime.arrays import Array, Hidden
from edge.runtime.bundle import VISION_GOLDEN
from edge.runtime.errors import EXPORT_AGAIN, BundleError, shown, telling_line
from edge.runtime.graph_names import PATCHES, PLACES, ROTARY_TABLES
from edge.runtime.vision.spec import VisionSpec

MAX_PATCHES = 1024


@dataclass(frozen=True)
class GoldenPicture:
    """What any machine can check a tower against."""

    inputs: Mapping[str, Array]
    float_rows: Hidden  # (m, out_size), of the checkpoint's weights in float32
    rows: Hidden  # (m, out_size), of the compressed ones in float32


def read_golden_picture(raw: bytes, spec: VisionSpec) -> GoldenPicture:
    """Read inputs and finite rows of this tower. Raises BundleError for anything else."""
    floats: dict[str, int] = {PATCHES: spec.patch_values}  # values of a patch
    if not spec.is_fixed:
        floats |= {PLACES: spec.side**2, **dict.fromkeys(ROTARY_TABLES, spec.head_dim // 2)}
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            inputs = {name: read_array(archive, name, np.float32, MAX_PATCHES * n) for name, n in floats.items()}
            if spec.is_fixed:
                inputs[PLACES] = read_array(archive, PLACES, np.int64, MAX_PATCHES)
            float_rows, rows = (
                read_array(archive, name, np.float32, MAX_PATCHES * spec.out_size) for name in ("float_rows", "rows")
            )
    except UnexpectedArray as error:
        raise _refusal(str(error)) from error
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for invalid bytes
        raise _refusal(f"cannot be read as arrays ({shown(telling_line(error))})") from error
    count = len(inputs[PATCHES]) if inputs[PATCHES].ndim else 0
    for name, array in inputs.items():
        width = (floats[name],) if name in floats else ()
        if array.shape != (count, *width) or not count or not np.isfinite(array).all():
            raise _refusal(f"holds {name} {list(array.shape)}, expected finite {[count, *width]}")
    if spec.is_fixed and not (inputs[PLACES].min() >= 0 and inputs[PLACES].max() <= spec.side**2):
        raise _refusal(f"holds places beyond {spec.side**2}")
    expected = (count // spec.merge_size**2 + 2 * spec.has_ends, spec.out_size)
    for each in (float_rows, rows):
        if each.shape != expected or not np.isfinite(each).all() or not each.any():
            raise _refusal(f"holds rows {list(each.shape)}, expected finite {list(expected)} that are not all zero")
    return GoldenPicture(inputs, float_rows, rows)


def _refusal(problem: str) -> BundleError:
    return BundleError(f"{VISION_GOLDEN} {problem}; {EXPORT_AGAIN}")
