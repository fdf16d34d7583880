"""How many patches and rows a picture of a size has, known before a pixel is decoded.

In: width and height, and a tower's record. Out: its grid of patches, the pixels that it is resized to, its rows in a
text. Knows nothing about pixels.

The sizes of kind "glm4v" are those of huggingface/transformers' smart_resize (4.57.6,
models/glm4v/image_processing_glm4v.py): sides are multiples of a row's, near the picture's own, and their product
within bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge.runtime.errors import PictureError
from edge.runtime.vision.spec import VisionSpec

_MAX_ASPECT = 200


@dataclass(frozen=True, slots=True)
class Grid:
    """Patches of one picture."""

    rows: int
    columns: int

    @property
    def patches(self) -> int:
        return self.rows * self.columns


def grid_of(width: int, height: int, spec: VisionSpec) -> Grid:
    """Return the patches of a picture with these sides in pixels. Raises PictureError for sides that it cannot have."""
    resized_width, resized_height = resized(width, height, spec)
    return Grid(resized_height // spec.patch_size, resized_width // spec.patch_size)


def num_rows(grid: Grid, spec: VisionSpec) -> int:
    """Return the rows that a picture has in a text, with those around it where they are the tower's own."""
    return grid.patches // spec.merge_size**2 + 2 * spec.has_ends


def resized(width: int, height: int, spec: VisionSpec) -> tuple[int, int]:
    """Return the width and height in pixels that the tower sees. Raises PictureError for sides that it cannot have."""
    if spec.is_fixed:
        return spec.image_size, spec.image_size
    unit = spec.patch_size * spec.merge_size  # pixels of a side of what becomes one row
    given = f"the picture has {width:,} x {height:,} pixels"
    if min(width, height) < unit:
        raise PictureError(f"{given}, and this model takes {unit} or more on each side; enlarge it")
    if max(width, height) / min(width, height) > _MAX_ASPECT:
        raise PictureError(
            f"{given}, and this model takes none more than {_MAX_ASPECT} times as long as wide; give a part of it"
        )
    seen = spec.frames * width * height  # a still picture counts once for each frame of a patch
    in_units = [round(side / unit) * unit for side in (width, height)]
    if spec.frames * math.prod(in_units) > spec.max_pixels:
        shrink = math.sqrt(seen / spec.max_pixels)
        in_units = [max(unit, math.floor(side / shrink / unit) * unit) for side in (width, height)]
    elif spec.frames * math.prod(in_units) < spec.min_pixels:
        grow = math.sqrt(spec.min_pixels / seen)
        in_units = [math.ceil(side * grow / unit) * unit for side in (width, height)]
    return in_units[0], in_units[1]
