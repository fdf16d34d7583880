"""The golden picture: a small one that every export of a tower is checked with, and every engine can be.

In: a VisionSpec; later, rows of the float and of the compressed tower. Out: a tower's inputs; the file of a bundle that
has both. Knows nothing about weights.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from edge.export.npz import put_array
from edge.runtime.arrays import Array
from edge.runtime.bundle import VISION_GOLDEN
from edge.runtime.vision import golden_picture
from edge.runtime.vision.geometry import Grid
from edge.runtime.vision.preprocess import arrays_of
from edge.runtime.vision.spec import VisionSpec

SIDE = 8  # patches, at most: enough to tell places apart, and few enough to take next to no time
SEED = 20_251_129


def golden_inputs(spec: VisionSpec) -> dict[str, Array]:
    """A picture of gentle colours with noise on them, as a tower takes it: the same every time."""
    side = min(SIDE, spec.side) // spec.merge_size * spec.merge_size
    size, rng = side * spec.patch_size, np.random.default_rng(SEED)
    slope = np.linspace(0, 255, size)
    colours = np.stack([np.broadcast_to(slope[:, None], (size, size)), np.broadcast_to(slope, (size, size))], -1)
    colours = np.concatenate([colours, 255 - colours[..., :1]], -1)
    pixels = np.clip(colours + rng.integers(-48, 49, colours.shape), 0, 255).astype(np.uint8)
    return arrays_of(pixels, Grid(side, side), spec)


class GoldenPicture(golden_picture.GoldenPicture):
    """What a bundle holds of it."""

    def write(self, folder: Path) -> None:
        """Write an .npz: same arrays, same bytes."""
        with zipfile.ZipFile(folder / VISION_GOLDEN, "w") as archive:
            for name, array in {**self.inputs, "float_rows": self.float_rows, "rows": self.rows}.items():
                put_array(archive, name, array)
