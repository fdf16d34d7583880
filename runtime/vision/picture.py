"""A picture as a tower takes it: pixels, their hash, and the words that say what it was.

In: an array of pixels. Out: a frozen `Picture`. Knows nothing about files and how they are decoded (`decode.py`), or
about what a tower makes of the pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edge.runtime.errors import PictureError, shown
from edge.runtime.rules import Flag, Settings, Whole, setting

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)

MAX_PIXELS = 80_000_000  # Pillow refuses more than 178,956,970 itself
MAX_BYTES = 100_000_000
MAX_SIDE = 65_500  # pixels; no JPEG has more
_VERSION = b"edgeglm picture 1\0"  # of what `sha256` is over


@dataclass(frozen=True, slots=True)
class PictureSettings(Settings):
    """How files of pictures are read, and how large they may be."""

    orientation: bool = setting(True, Flag(), "turn a picture as its EXIF says; the original models do not")
    max_pixels: int = setting(MAX_PIXELS, Whole(1, 170_000_000), "pixels of a picture; decoding takes 7 bytes for each")
    max_bytes: int = setting(MAX_BYTES, Whole(1, 1 << 32), "bytes of a picture's file")


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Decoded pixels, and what identifies them. Two are equal if their pixels are; `told` is for messages alone."""

    pixels: Pixels = field(repr=False)  # read-only
    sha256: str  # over size and pixels
    told: str  # "1,024 x 768 PNG"

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    @classmethod
    def of(cls, pixels: Pixels, told: str = "") -> Picture:
        """Make one of pixels that nobody else changes: they become read-only, and are copied only if they have to be.

        Raises PictureError for another shape or type.
        """
        if (
            not isinstance(pixels, np.ndarray)
            or pixels.dtype != np.uint8
            or pixels.shape[2:] != (3,)
            or not pixels.size
        ):
            given = f"{pixels.shape} of {pixels.dtype}" if isinstance(pixels, np.ndarray) else shown(pixels)
            raise PictureError(f"a picture's pixels are {given}, expected an array (height, width, 3) of uint8")
        pixels = np.ascontiguousarray(pixels)
        pixels.flags.writeable = False
        height, width, _ = pixels.shape
        digest = hashlib.sha256(_VERSION + height.to_bytes(8, "little") + width.to_bytes(8, "little"))
        digest.update(pixels.data)
        return cls(pixels, digest.hexdigest(), told or f"{width:,} x {height:,}")
