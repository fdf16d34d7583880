"""Files of pictures: whole ones, with every byte changed, and with checksums that fit what was changed.

Without the last, a PNG's checksum would catch nearly every change before a decoder meets it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edge.runtime.errors import PictureError
from edge.runtime.vision.decode import open_picture
from edge.runtime.vision.geometry import grid_of
from edge.runtime.vision.picture import Picture, PictureSettings
from tests.fuzz.target import Target
from tests.runtime.vision.files import chunk, encoded, gif, pixels, png, tiff, tiff_lines
from tests.runtime.vision.specs import EVA, GLM4V

_SETTINGS = PictureSettings(max_pixels=4_000_000, max_bytes=4_000_000)
_PNG = b"\x89PNG\r\n\x1a\n"
_CHUNK = re.compile(rb"IHDR|PLTE|tRNS|eXIf|acTL|IDAT|IEND")


def _seeds(_folder: Path) -> list[bytes]:
    image = Image.fromarray(pixels(40, 30))
    exif: dict[str, Any] = {"turn": 6}
    frames: dict[str, Any] = {"save_all": True, "append_images": [image.rotate(90), image]}
    return [
        encoded(image, "PNG", **exif),
        encoded(image.convert("P"), "PNG", transparency=bytes(256), bits=8),
        encoded(image.convert("RGBA"), "PNG", **frames),
        encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)), "PNG"),
        encoded(image, "JPEG", comment=b"c", icc_profile=b"p" * 300, **exif),
        encoded(image, "JPEG", progressive=True, subsampling=2),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image.convert("L"), "JPEG"),
        encoded(image, "WEBP", **exif),
        encoded(image, "WEBP", lossless=True),
        encoded(image, "WEBP", **frames),
        encoded(image, "GIF", interlace=1, comment=b"c"),
        encoded(image, "GIF", **frames),
        gif(1, 1),
        encoded(image, "BMP"),
        encoded(image.convert("P"), "BMP"),
        encoded(image.convert("1"), "BMP"),
        encoded(image, "TIFF", **exif),
        encoded(image, "TIFF", compression="tiff_lzw"),
        encoded(image, "TIFF", compression="tiff_adobe_deflate"),
        encoded(image, "TIFF", compression="jpeg"),
        encoded(image.convert("1"), "TIFF", compression="group4"),
        encoded(image.convert("CMYK"), "TIFF", compression="packbits", **frames),
        tiff(tiff_lines(5, 5), following=8),
        png(1, 1),
    ]


def _read(raw: bytes, _folder: Path) -> object:
    """Decode, and see what a model of either kind would do with the size."""
    picture = open_picture(raw, _SETTINGS)
    assert picture == Picture.of(picture.pixels)
    assert picture.pixels.size <= 3 * _SETTINGS.max_pixels
    return [grid_of(picture.width, picture.height, spec) for spec in (EVA, GLM4V) if min(picture.pixels.shape[:2]) > 99]


def _read_checked(raw: bytes, folder: Path) -> object:
    return _read(_with_checksums(raw), folder)


def _with_checksums(raw: bytes) -> bytes:
    """A PNG whose chunks have the lengths and checksums of what is in them now."""
    if not raw.startswith(_PNG):
        raise PictureError("not the beginning of a PNG")
    names = [*_CHUNK.finditer(raw)]
    ends = [name.start() - 8 for name in names[1:]] + [len(raw)]
    parts = [chunk(name[0], raw[name.end() : end]) for name, end in zip(names, ends, strict=False)]
    return _PNG + b"".join(parts)


def _png_seeds(folder: Path) -> list[bytes]:
    image = Image.fromarray(pixels(40, 30))
    modes = [encoded(image.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
    return [*modes, *(seed for seed in _seeds(folder) if seed.startswith(_PNG))]


_WORDS = (
    *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"zTXt", b"iCCP"),
    *(
        b"\xff\xd8",
        b"\xff\xd9",
        b"\xff\xda",
        b"\xff\xc0",
        b"\xff\xc2",
        b"\xff\xc4",
        b"\xff\xdb",
        b"\xff\xe1",
        b"Exif\0\0",
    ),
    *(b"RIFF", b"VP8X", b"VP8L", b"VP8 ", b"ALPH", b"ANIM", b"ANMF", b"EXIF"),
    *(b"!\xf9\4", b"!\xfe", b",", b";"),
    *(b"II*\0", b"MM\0*", b"II+\0", b"\x12\1\3\0\1\0\0\0\6\0\0\0", b"\x42\1\4\0", b"\x16\1\4\0", b"\xff\xff\xff\xff"),
)
TARGETS = (
    Target("pictures", _seeds, _read, "bytes", _WORDS),
    Target("pictures-png", _png_seeds, _read_checked, "bytes", _WORDS),
)
