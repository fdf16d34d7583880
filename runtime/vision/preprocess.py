"""From decoded pixels to the arrays that a tower's graphs take.

In: a `Picture` and a tower's record. Out: arrays by name: patches in merge order, their places, and for kind "glm4v"
their rotation. Knows nothing about files, graphs and engines.

Merge order: the 2 x 2 patches that become one row stand together, row by row; such squares follow row by row. Values of
a patch are in the order colour, frame, row, column.

Pixels are resized by Pillow, as the original models do it, so that every bit is theirs: its bicubic filter widens where
it shrinks (antialiasing), and rounds to whole numbers after each of its two passes. Then each of the 256 values that a
colour can have is looked up in a table, made as the originals compute: in float32, / 255, - mean, / std.
"""

from __future__ import annotations

import numpy as np

from edge.runtime.arrays import Array, Hidden, Ids
from edge.runtime.extras import missing_packages_named
from edge.runtime.graph_names import PATCHES, PLACES, ROTARY_TABLES
from edge.runtime.vision.geometry import Grid, grid_of, resized
from edge.runtime.vision.picture import Picture, Pixels
from edge.runtime.vision.spec import VisionSpec

_CUBIC = np.float32(-0.75)  # of torch's bicubic interpolation
_THETA = 10000.0


def tower_inputs(picture: Picture, spec: VisionSpec) -> dict[str, Array]:
    """Return what the tower's first graph takes. Raises PictureError, MissingPackageError."""
    return arrays_of(resized_pixels(picture, spec), grid_of(picture.width, picture.height, spec), spec)


def arrays_of(pixels: Pixels, grid: Grid, spec: VisionSpec) -> dict[str, Array]:
    """Return what the tower's first graph takes of pixels that have the size of this grid."""
    patches = patches_of(pixels, spec)
    if spec.is_fixed:
        return {PATCHES: patches, PLACES: numbered_places(grid, spec)}
    turned = dict(zip(ROTARY_TABLES, rotation(grid, spec), strict=True))
    return {PATCHES: patches, PLACES: interpolated_places(grid, spec), **turned}


def resized_pixels(picture: Picture, spec: VisionSpec) -> Pixels:
    """Return the pixels that the tower sees. Raises PictureError, MissingPackageError."""
    size = resized(picture.width, picture.height, spec)
    with missing_packages_named("vision"):
        from PIL import Image
    if size == (picture.width, picture.height):  # Pillow would copy it
        return picture.pixels
    return np.asarray(Image.fromarray(picture.pixels).resize(size, Image.Resampling.BICUBIC))


def patches_of(pixels: Pixels, spec: VisionSpec) -> Array:
    """Return the values of all patches in merge order: (n, patch_values) float32."""
    size, merge = spec.patch_size, spec.merge_size
    height, width, _ = pixels.shape
    squares = pixels.reshape(height // (size * merge), merge, size, width // (size * merge), merge, size, 3)
    merged = squares.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, 1, size * size)
    values = np.empty((len(merged), 3, spec.frames, size * size), np.float32)
    for colour, table in enumerate(colour_tables(spec)):
        values[:, colour] = table[merged[:, colour]]
    return values.reshape(len(merged), spec.patch_values)


def colour_tables(spec: VisionSpec) -> Hidden:
    """Return what each value of a colour becomes: (3, 256)."""
    fractions = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = (np.array(values, np.float32)[:, None] for values in (spec.mean, spec.std))
    return (fractions - mean) / std


def coordinates(grid: Grid, spec: VisionSpec) -> tuple[Ids, Ids]:
    """Return the row and the column of each patch, in merge order: both (n,)."""
    merge = spec.merge_size
    numbers = np.arange(grid.patches).reshape(grid.rows // merge, merge, grid.columns // merge, merge)
    rows, columns = np.divmod(numbers.transpose(0, 2, 1, 3).reshape(-1), grid.columns)
    return rows, columns


def numbered_places(grid: Grid, spec: VisionSpec) -> Ids:
    """Return each patch's row of the table of places, where row 0 is the class token's: (n,)."""
    rows, columns = coordinates(grid, spec)
    return 1 + rows * spec.side + columns


def interpolated_places(grid: Grid, spec: VisionSpec) -> Hidden:
    """Return weights over the table of places by which each patch's place is interpolated: (n, side * side).

    As torch's grid_sample (mode bicubic, align_corners False, padding_mode border), step by step in float32. Where a
    patch lies is rounded once, as by the fused instruction that torch uses: near place 24, one bit more shifts by 1e-6.
    """
    rows, columns = coordinates(grid, spec)
    by_row, by_column = _cubic_weights(grid.rows, spec.side), _cubic_weights(grid.columns, spec.side)
    weights = by_row[rows][:, :, None] * by_column[columns][:, None, :]
    return weights.reshape(grid.patches, spec.side**2)


def _cubic_weights(count: int, side: int) -> Hidden:
    """Return the weight of each of `side` places for each of `count` patches along one axis: (count, side)."""
    half, one, two = np.float32(0.5), np.float32(1), np.float32(2)
    normed = (np.arange(count, dtype=np.float32) + half) / np.float32(count) * two - one
    at = ((normed + one).astype(np.float64) * (side / 2) - 0.5).astype(np.float32)
    first = np.floor(at)
    t = at - first
    weights = np.zeros((count, side), np.float32)
    for offset, coefficients in enumerate((_outer(t + one), _inner(t), _inner(one - t), _outer(two - t))):
        place = np.clip(first + np.float32(offset - 1), 0, side - 1).astype(np.int64)
        weights[np.arange(count), place] += coefficients
    return weights


def _inner(x: Hidden) -> Hidden:
    """Weight of a place nearer than 1."""
    return ((_CUBIC + np.float32(2)) * x - (_CUBIC + np.float32(3))) * x * x + np.float32(1)


def _outer(x: Hidden) -> Hidden:
    """Weight of a place from 1 to 2 away."""
    return ((_CUBIC * x - np.float32(5) * _CUBIC) * x + np.float32(8) * _CUBIC) * x - np.float32(4) * _CUBIC


def rotation(grid: Grid, spec: VisionSpec) -> tuple[Hidden, Hidden]:
    """Return cosines and sines by which queries and keys are turned: both (n, head_dim / 2).

    The first half of the angles is by row, the second by column. Angles are float32, bit by bit the original's.
    """
    half = spec.head_dim // 2
    exponents = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
    frequencies = np.float32(1) / np.power(_THETA, exponents.astype(np.float64)).astype(np.float32)
    angles = np.concatenate([at.astype(np.float32)[:, None] * frequencies for at in coordinates(grid, spec)], axis=1)
    exact = angles.astype(np.float64)
    return np.cos(exact).astype(np.float32), np.sin(exact).astype(np.float32)
