"""What makes no pixels is left out before a decoder sees it, and a small file cannot make a reader work for long."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from edge.runtime.errors import PictureError
from edge.runtime.vision.bare import MAX_SCANNED, MAX_SCANS, bare
from edge.runtime.vision.bare_tiff import orientation
from edge.runtime.vision.decode import open_picture
from tests.runtime.vision.files import TURN, chunk, gif, pixels, plain, png, tiff, tiff_lines

SECRET = b"what makes no pixels"


def test_metadata_does_not_reach_the_decoder() -> None:
    exif = Image.Exif()
    exif[TURN] = 6
    exif[0x010E] = SECRET.decode()
    jpeg = plain("JPEG", exif=exif, comment=SECRET, icc_profile=SECRET, xmp=SECRET)
    text = [chunk(name, b"k\0\0" + SECRET) for name in (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"none")]
    files = {"JPEG": jpeg, "PNG": png(3, 3, between=text), "GIF": gif(2, 2, b"!\xfe\x14" + SECRET + b"\0")}
    for kind, data in files.items():
        assert SECRET in data
        assert SECRET not in bare(data, kind).data, kind  # type: ignore[arg-type]  # a key of the mapping
    assert bare(jpeg, "JPEG").turn == 6


def test_a_tiff_loses_every_line_that_makes_no_pixels() -> None:
    """All lines may claim all of the file: 2,000 of them would take 20 GB of a reader that believes them."""
    size = 10_000_000
    lines = [*tiff_lines(10, 10), *((40_000 + index, 7, size, 8) for index in range(2_000))]
    data = tiff(lines, bytes(size))
    tracemalloc.start()
    assert open_picture(data).told == "10 x 10 TIFF"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40_000_000  # the lines, and copies of the file


def test_directories_that_lead_to_each_other_end() -> None:
    assert open_picture(tiff(tiff_lines(2, 2), following=8)).told == "2 x 2 TIFF, the first of several pages"


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("kind", [3, 4])
def test_the_orientation_is_found_in_either_order_and_type(order: str, kind: int) -> None:
    mark = "<" if order == "II" else ">"
    value = struct.pack(f"{mark}{'HH' if kind == 3 else 'I'}", *((8, 0) if kind == 3 else (8,)))
    lines = struct.pack(f"{mark}HHI", 256, 4, 1) + bytes(4) + struct.pack(f"{mark}HHI", TURN, kind, 1) + value
    exif = order.encode() + struct.pack(f"{mark}HIH", 42, 8, 2) + lines + bytes(4)
    assert orientation(exif) == 8
    for end in range(len(exif)):
        assert orientation(exif[:end]) in (1, 8)


def test_text_that_unpacks_to_gigabytes_is_not_unpacked() -> None:
    packed = zlib.compress(bytes(1 << 24))
    between = [chunk(name, b"k\0\0" + packed) for name in (b"zTXt", b"iCCP")] * 100
    tracemalloc.start()
    assert open_picture(png(1, 1, between=between)).told == "1 x 1 PNG"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 24


def test_pixels_beyond_the_last_row_are_not_unpacked() -> None:
    data = zlib.compress(bytes(1 << 24))
    assert open_picture(png(1, 1, data)).pixels.tolist() == [[[0, 0, 0]]]


def test_a_jpeg_of_many_scans_is_refused() -> None:
    data = plain("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    own = data.count(b"\xff\xda")

    def with_scans(number: int) -> bytes:
        return data[:-2] + data[last:-2] * (number - own) + b"\xff\xd9"

    assert bare(with_scans(MAX_SCANS), "JPEG").data.count(b"\xff\xda") == MAX_SCANS
    with pytest.raises(PictureError, match="is coded in 101 scans or more, which takes long; save it as PNG or JPEG"):
        open_picture(with_scans(MAX_SCANS + 1))


def test_the_larger_a_jpeg_the_fewer_scans_it_may_have() -> None:
    data = bytearray(plain("JPEG", progressive=True))
    begin = data.index(b"\xff\xc2") + 5
    data[begin : begin + 4] = struct.pack(">HH", 20_000, 65_000)  # 1.3 billion pixels
    scans = MAX_SCANNED // (20_000 * 65_000) + 1
    with pytest.raises(PictureError, match=f"is coded in {scans} scans or more, which takes long; save it as PNG"):
        open_picture(bytes(data))


def test_a_thumbnail_is_not_taken_for_the_picture() -> None:
    """Its markers are inside of a segment."""
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "JPEG")
    data = plain("JPEG")
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + 100 + len(small.getvalue())) + bytes(100) + small.getvalue()
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image)
    assert np.array_equal(open_picture(data[:2] + thumbnail + data[2:]).pixels, expected)


def test_what_decides_colours_is_kept() -> None:
    """Adobe's segment says that there is no change of colours: without it, red would be taken for brightness."""
    image = Image.fromarray(pixels())
    file = io.BytesIO()
    image.save(file, "JPEG", keep_rgb=True, quality=95)
    assert np.abs(open_picture(file.getvalue()).pixels.astype(int) - pixels()).mean() < 10


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(1, 1)[:33] + chunk(b"tEXt", b"") * 1_000_001, "has more than 1,000,000 chunks"),
        (gif(1, 1, b"\1" * 1_000_001), "has more than 1,000,000 blocks before its picture"),
        (gif(1, 1, b"!\xfe" + b"\1a" * 1_000_001 + b"\0"), "has more than 1,000,000 blocks"),
        (b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(10) + b"EXIF\0\0\0\0" * 100_001, "more than 100,000 parts"),
        (plain("JPEG")[:2] + b"\xff\xfe\0\2" * 100_001, "has more than 100,000 segments"),
        (tiff([*tiff_lines(9, 9), (324, 4, 1_000_001, 8)]), "a list of more than 1,000,000 values"),
        (
            tiff([*tiff_lines(9, 9, 8), (322, 4, 1, 60_000), (323, 4, 1, 60_000)]),
            "tiles of more than 16,777,216 pixels",
        ),
        (tiff(tiff_lines(9, 9, 34712)), r"is a TIFF of an uncommon compression \(34712\), which is not read"),
    ],
    ids=["png", "gif", "gif-comment", "webp", "jpeg", "tiff-list", "tiff-tile", "tiff-compression"],
)
def test_work_before_decoding_is_bounded(data: bytes, words: str) -> None:
    with pytest.raises(PictureError, match=words):
        open_picture(data)


def test_a_bmp_of_run_lengths_is_refused() -> None:
    """Pillow decodes it in Python, a value at a time."""
    data = bytearray(plain("BMP"))
    data[30] = 1
    with pytest.raises(PictureError, match="is a BMP that is compressed by run lengths, which is not read; save it as"):
        open_picture(bytes(data))
