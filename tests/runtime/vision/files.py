"""Files of pictures for tests: valid ones of every format, and parts to build hostile ones from."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

WIDTH, HEIGHT = 53, 37

Entry = tuple[int, int, int, int]  # of a TIFF's directory: tag, type, number of values, value or place
TURN = 0x0112


def pixels(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Smooth colours with some noise, different in every corner."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1)
    return np.clip(smooth + rng.integers(-20, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, turn: int | None = None, **options: Any) -> bytes:  # Any: Pillow's
    """A file, with an orientation in its EXIF if one is given."""
    if turn is not None:
        options["exif"] = Image.Exif()
        options["exif"][TURN] = turn
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(kind: str = "PNG", turn: int | None = None, **options: Any) -> bytes:  # Any: Pillow's
    return encoded(Image.fromarray(pixels()), kind, turn, **options)


def chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4)


def png(width: int, height: int, data: bytes | None = None, between: Iterable[bytes] = ()) -> bytes:
    """A PNG in RGB whose header says what it is told to."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = zlib.compress(b"\0" * ((3 * width + 1) * height)) if data is None else data
    parts = [chunk(b"IHDR", header), *between, chunk(b"IDAT", content), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(entries: Iterable[Entry], tail: bytes = b"", following: int = 0) -> bytes:
    lines = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(lines) // 12) + lines + struct.pack("<I", following) + tail


def tiff_lines(width: int, height: int, compression: int = 1) -> list[Entry]:
    """Lines of a directory of grey pixels, which begin where the file does."""
    return [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (273, 4, 1, 0),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, width * height),
    ]


def gif(width: int, height: int, before: bytes = b"", frame: tuple[int, int] | None = None) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return screen + before + b"," + struct.pack("<HHHHB", 0, 0, *(frame or (width, height)), 0) + b"\2\2\x44\1\0;"
