"""From the file of a picture to its pixels, whoever made the file.

In: a path or a file's bytes, and settings. Out: a `Picture`, or a PictureError. Knows nothing about models.

Pixels are those of Pillow's `convert("RGB")`, which the original models use: transparency is dropped, not put on a
background, and colour profiles are not applied. Two things differ. A picture is turned as its EXIF says, unless the
settings say not to. And 16 bits of grey become 8 by their upper half, as those of colours do: Pillow would make white
of all but the darkest.
"""

from __future__ import annotations

import importlib
import io
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge.runtime.errors import MemoryLimitError, PictureError, in_words, telling_line
from edge.runtime.extras import missing_packages_named
from edge.runtime.files import read_file, shown_path
from edge.runtime.vision.bare import COPY, Bare, bare
from edge.runtime.vision.formats import ADVICE, SAVE_AS, Format, Refusal, format_of
from edge.runtime.vision.picture import MAX_SIDE, Picture, PictureSettings, Pixels

if TYPE_CHECKING:
    from PIL import Image

_PLUGINS: Mapping[Format, str] = {
    "PNG": "PngImagePlugin",
    "JPEG": "JpegImagePlugin",
    "WebP": "WebPImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
}
_CONVERTED = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB")
_GREY_16 = ("I;16", "I;16L", "I;16B")
_ON_THEIR_SIDE = (5, 6, 7, 8)  # orientations whose rows are columns
_BAND = 1 << 20  # pixels that are converted at a time
_WEBP_SHARE = 3  # its decoder takes as many times the memory of others
_lock = threading.Lock()  # one picture at a time is decoded: it bounds memory, and guards the filter of warnings


def open_picture(source: Path | bytes, settings: PictureSettings | None = None) -> Picture:
    """Decode a file of a picture: its first frame, if it has several.

    Raises PictureError, MissingPackageError, MemoryLimitError.
    """
    settings = PictureSettings() if settings is None else settings
    with missing_packages_named("vision"):
        import PIL  # noqa: F401  # before the file is read
    name, data = _content(source, settings)
    try:
        kind = format_of(data)
        file = bare(data, kind)
        _check_size(file, kind, settings)
        turn = file.turn if settings.orientation or kind == "TIFF" else 1  # Pillow turns TIFF by itself
        with _lock:
            pixels = _pixels(file, kind, turn)
    except Refusal as refusal:
        raise PictureError(f"{name} {refusal}") from None
    height, width, _ = pixels.shape
    told = f"{width:,} x {height:,} {kind}"
    return Picture.of(pixels, f"{told}, the first of several {file.more}" if file.more else told)


def _content(source: Path | bytes, settings: PictureSettings) -> tuple[str, bytes]:
    """Return how messages name a source, and its bytes. Raises PictureError."""
    if isinstance(source, Path):
        return shown_path(source), read_file(source, PictureError, ADVICE, max_bytes=settings.max_bytes)
    if len(source) > settings.max_bytes:
        raise PictureError(
            f"the picture has {len(source):,} bytes, expected at most {settings.max_bytes:,}; make it smaller"
        )
    return "the picture", source


def _check_size(file: Bare, kind: Format, settings: PictureSettings) -> None:
    """Raises Refusal for a picture without pixels, or with more than may be decoded."""
    most = settings.max_pixels // _WEBP_SHARE if kind == "WebP" else settings.max_pixels
    given = f"has {file.width:,} x {file.height:,} pixels"
    if file.width < 1 or file.height < 1:
        raise Refusal(f"is damaged: it {given}; {COPY}")
    if file.width * file.height > most:
        raise Refusal(f"{given}, expected at most {most:,} in all; make it smaller")
    if max(file.width, file.height) > MAX_SIDE:
        raise Refusal(f"{given}, expected at most {MAX_SIDE:,} on a side; make it smaller")


def _pixels(file: Bare, kind: Format, turn: int) -> Pixels:
    """Decode, convert and turn: one copy besides Pillow's own. Raises Refusal."""
    from PIL import Image

    importlib.import_module(f"PIL.{_PLUGINS[kind]}")  # Pillow imports all of its own if it misses one
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(io.BytesIO(file.data), formats=(kind.upper(),)) as image:
                if image.size != (file.width, file.height):
                    raise Refusal(f"is damaged: it has two sizes; {COPY}")
                image.load()
                return _turned(image, turn)
    except Refusal:
        raise
    except MemoryError as error:
        raise MemoryLimitError(
            f"memory is too short for a picture of {file.width:,} x {file.height:,} pixels; make it smaller"
        ) from error
    except Exception as error:  # decoders raise what they like
        said = in_words(telling_line(error))
        reason = "" if "cannot identify" in said else f" ({said})"
        raise Refusal(f"is damaged, or an uncommon {kind}{reason}; {COPY}, or {SAVE_AS}") from error


def _turned(image: Image.Image, turn: int) -> Pixels:
    """Return the pixels in RGB, turned, converted in bands so that no third copy is made."""
    width, height = image.size
    pixels = np.empty((width, height, 3) if turn in _ON_THEIR_SIDE else (height, width, 3), np.uint8)
    view = pixels.transpose(1, 0, 2) if turn in _ON_THEIR_SIDE else pixels  # with the rows of the file
    view = view[:: -1 if turn in (3, 4, 6, 7) else 1, :: -1 if turn in (2, 3, 7, 8) else 1]
    step = max(1, _BAND // width)
    for top in range(0, height, step):
        view[top : top + step] = _rgb(image.crop((0, top, width, min(top + step, height))))
    return pixels


def _rgb(band: Image.Image) -> Pixels:
    """Return some rows in RGB: (rows, width, 3), or (rows, width, 1) of grey. Raises Refusal."""
    if band.mode in _GREY_16:
        upper: Pixels = (np.asarray(band) >> 8).astype(np.uint8)[:, :, None]
        return upper
    if band.mode not in _CONVERTED:
        raise Refusal(f"has values of an uncommon kind ({band.mode}), in which white is not known; {SAVE_AS}")
    return np.asarray(band.convert("RGB"))
