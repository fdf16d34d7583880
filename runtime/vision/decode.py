"""From the file of a picture to its pixels, whoever made the file.

In: a path or a file's bytes, and settings. Out: a `Picture`, or a PictureError. Knows nothing about models.

Pixels are those of Pillow's `convert("RGB")`, which the original models use: transparency is dropped, not put on a
background, and colour profiles are not applied. Two things differ. A picture is turned as its EXIF says, unless the
settings say not to. And 16 bits of grey become 8 by their upper half, as those of colours do: Pillow would make white
of all but the darkest.
"""

from __future__ import annotations

import io
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge.runtime.errors import PictureError, in_words, telling_line
from edge.runtime.extras import missing_packages_named
from edge.runtime.files import read_file, shown_path
from edge.runtime.vision.picture import MAX_SIDE, Picture, PictureSettings, Pixels

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
ADVICE = "give a PNG, JPEG, WebP, GIF, BMP or TIFF file"
_BAND = 1 << 22  # pixels that are converted at a time
_ORIENTATION = 0x0112
_lock = threading.Lock()  # one picture at a time is decoded: it bounds memory, and guards the filter of warnings


def open_picture(source: Path | bytes, settings: PictureSettings | None = None) -> Picture:
    """Decode a file of a picture: its first frame, if it has several. Raises PictureError, MissingPackageError."""
    settings = PictureSettings() if settings is None else settings
    with missing_packages_named("vision"):
        from PIL import Image
    name, data = _content(source, settings)
    try:
        with _lock, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(name, image.width, image.height, settings)
                told = f"{image.width:,} x {image.height:,} {image.format}"
                pixels = _pixels(image, settings)
    except PictureError:
        raise
    except Exception as error:
        raise PictureError(f"{name} cannot be read ({in_words(telling_line(error))}); {ADVICE}") from error
    return Picture.of(pixels, told)


def _content(source: Path | bytes, settings: PictureSettings) -> tuple[str, bytes]:
    """Return how messages name a source, and its bytes."""
    if isinstance(source, Path):
        return shown_path(source), read_file(source, PictureError, ADVICE, max_bytes=settings.max_bytes)
    return "the picture", source


def _check_size(name: str, width: int, height: int, settings: PictureSettings) -> None:
    if width * height > settings.max_pixels:
        raise PictureError(
            f"{name} has {width:,} x {height:,} pixels, expected at most {settings.max_pixels:,}; make it smaller"
        )
    if max(width, height) > MAX_SIDE:
        raise PictureError(f"{name} has {width:,} x {height:,} pixels, expected at most {MAX_SIDE:,} on a side")


def _pixels(image: Image.Image, settings: PictureSettings) -> Pixels:
    """Decode, convert and turn: one copy besides Pillow's own."""
    turn = image.getexif().get(_ORIENTATION, 1) if settings.orientation else 1
    image.load()
    width, height = image.size
    pixels = np.empty((width, height, 3) if turn in (5, 6, 7, 8) else (height, width, 3), np.uint8)
    view = pixels.transpose(1, 0, 2) if turn in (5, 6, 7, 8) else pixels  # with the rows of the file
    view = view[:: -1 if turn in (3, 4, 6, 7) else 1, :: -1 if turn in (2, 3, 7, 8) else 1]
    step = max(1, _BAND // width)
    for top in range(0, height, step):
        band = image.crop((0, top, width, min(top + step, height)))
        view[top : top + step] = np.asarray(band.convert("RGB"))
    return pixels
