"""Every format that is read gives Pillow's pixels, turned as EXIF says; everything else is one sentence."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from edge.runtime.errors import EdgeError, MissingPackageError, PictureError
from edge.runtime.vision.decode import open_picture
from edge.runtime.vision.picture import MAX_PIXELS, PictureSettings
from tests.runtime.vision.files import HEIGHT, WIDTH, encoded, gif, pixels, plain, png, tiff, tiff_lines

AS_STORED = PictureSettings(orientation=False)

# Mode of the file -> formats that have it, with options of Pillow's writer.
STORED: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "1": [("PNG", {}), ("BMP", {}), ("TIFF", {"compression": "group4"}), ("TIFF", {"compression": "packbits"})],
    "L": [("PNG", {}), ("JPEG", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {"compression": "tiff_lzw"})],
    "LA": [("PNG", {}), ("TIFF", {})],
    "P": [("PNG", {}), ("GIF", {}), ("GIF", {"interlace": 1}), ("BMP", {}), ("TIFF", {})],
    "RGB": [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "subsampling": 2, "comment": b"x" * 1000, "icc_profile": b"y" * 70_000}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "jpeg"}),
    ],
    "RGBA": [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})],
    "CMYK": [("JPEG", {}), ("TIFF", {"compression": "tiff_lzw"})],
    "LAB": [("TIFF", {})],
}
FILES = [(mode, kind, options) for mode, kinds in STORED.items() for kind, options in kinds]


def stored(mode: str, kind: str, options: dict[str, Any], turn: int | None = None) -> bytes:
    image = Image.fromarray(pixels())
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(pixels(seed=1)[:, :, 0]))
    return encoded(image.convert(mode), kind, turn, **options)


@pytest.mark.parametrize(("mode", "kind", "options"), FILES)
def test_pixels_are_those_of_pillow(mode: str, kind: str, options: dict[str, Any]) -> None:
    data = stored(mode, kind, options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    found = open_picture(data)
    assert np.array_equal(found.pixels, expected)
    assert found.told == f"{WIDTH} x {HEIGHT} {'WebP' if kind == 'WEBP' else kind}"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(kind: str, turn: int) -> None:
    data = plain(kind, turn, **({} if kind in ("PNG", "TIFF") else {"quality": 90}))
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        turned = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    with Image.open(io.BytesIO(data)) as image:
        as_stored = np.asarray(image.convert("RGB"))
    assert np.array_equal(open_picture(data).pixels, turned)
    assert np.array_equal(open_picture(data, AS_STORED).pixels, as_stored)


def test_a_setting_that_turns_nothing_is_what_the_original_models_see() -> None:
    """Pillow turns TIFF files by itself, and so they are turned for the originals, too."""
    on_their_side = {kind: open_picture(plain(kind, 6), AS_STORED).pixels.shape[:2] for kind in ("PNG", "TIFF")}
    assert on_their_side == {"PNG": (HEIGHT, WIDTH), "TIFF": (WIDTH, HEIGHT)}


def test_a_wrong_orientation_turns_nothing() -> None:
    expected = pixels()
    for turn in (0, 9, 60_000):
        assert np.array_equal(open_picture(plain("PNG", turn)).pixels, expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_of_grey_become_their_upper_half(kind: str) -> None:
    grey = np.random.default_rng(0).integers(0, 1 << 16, (HEIGHT, WIDTH)).astype(np.uint16)
    found = open_picture(encoded(Image.fromarray(grey), kind)).pixels
    assert np.array_equal(found, np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def test_values_without_a_known_white_are_refused() -> None:
    for mode in ("I", "F"):
        data = encoded(Image.fromarray(pixels()).convert("L").convert(mode), "TIFF")
        with pytest.raises(PictureError, match=f"uncommon kind .{mode}., in which white is not known; save it as PNG"):
            open_picture(data)


def test_transparency_is_dropped_without_a_warning() -> None:
    image = Image.fromarray(pixels()).convert("P")
    data = encoded(image, "PNG", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(open_picture(data).pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_read_and_told(kind: str) -> None:
    frames = [Image.fromarray(pixels(seed=seed)).quantize(32).convert("RGB") for seed in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    found = open_picture(data)
    assert np.array_equal(found.pixels, expected)
    assert found.told.endswith(f", the first of several {'pages' if kind == 'TIFF' else 'frames'}")


def test_of_a_phones_file_with_two_pictures_the_first_is_read() -> None:
    """A JPEG with another behind it, which Pillow calls MPO."""
    images = [Image.fromarray(pixels(seed=seed)) for seed in range(2)]
    data = encoded(images[0], "MPO", save_all=True, append_images=images[1:])
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO"
        expected = np.asarray(image)
    assert np.array_equal(open_picture(data).pixels, expected)


@pytest.mark.parametrize(("order", "big"), [("<", True), ("<", False), (">", False)])
def test_tiff_is_read_in_either_order_and_as_big_tiff(order: str, big: bool) -> None:
    """Grey, its rows from the bottom (orientation 4), with a line for a comment that claims all of the file."""
    grey = pixels()[:, :, 0]
    head, count, word = (16, "Q", "Q") if big else (8, "H", "I")
    line_bytes, word_bytes = (20, 8) if big else (12, 4)
    begin = head + struct.calcsize(f"={count}") + 11 * line_bytes + word_bytes
    lines = [line for line in tiff_lines(WIDTH, HEIGHT) if line[0] != 273]
    lines = sorted([*lines, (274, 3, 1, 4), (273, 4, 1, begin), (270, 2, 10_000, 0)])
    packed = [
        struct.pack(f"{order}HH{word}", *line[:3])
        + struct.pack(f"{order}{'H' if line[1] == 3 else 'I'}", line[3]).ljust(word_bytes, b"\0")
        for line in lines
    ]
    mark = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    mark += struct.pack(f"{order}HHQ", 8, 0, head) if big else struct.pack(f"{order}I", head)
    data = mark + struct.pack(f"{order}{count}", len(lines)) + b"".join(packed) + bytes(word_bytes) + grey.tobytes()
    assert np.array_equal(open_picture(data).pixels, np.repeat(grey[::-1, :, None], 3, axis=2))


def test_a_gif_of_one_frame_with_a_comment_is_not_told_to_have_several() -> None:
    assert open_picture(encoded(Image.new("L", (9, 9)), "GIF", comment=b"a, b")).told == "9 x 9 GIF"


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (65_500, 2)])
def test_thin_and_tiny_pictures_are_read(size: tuple[int, int]) -> None:
    found = open_picture(encoded(Image.new("RGB", size, (1, 2, 3)), "PNG"))
    assert (found.width, found.height) == size
    assert np.unique(found.pixels.reshape(-1, 3), axis=0).tolist() == [[1, 2, 3]]


def test_bands_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {turn: open_picture(plain("PNG", turn)).pixels for turn in range(1, 9)}
    monkeypatch.setattr("edge.runtime.vision.decode._BAND", 5 * WIDTH)
    for turn, whole in expected.items():
        assert np.array_equal(open_picture(plain("PNG", turn)).pixels, whole)


REFUSED = [
    (b"", "is empty; copy it again"),
    (bytes(5000), "begins with zeros alone; give a PNG, JPEG, WebP, GIF, BMP or TIFF file"),
    (b"Hello, world.\n", "is text; give a PNG, JPEG"),
    (b"\x07\x01\x02rubbish", "is no picture of a format that is read; give a PNG"),
    (b'<?xml version="1.0"?>\n<!-- a -->\n<svg width="4">', "is SVG, a drawing without pixels; turn it into PNG"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is SVG, "),
    (b"<!-- -->" * 5000, "is text; give"),
    (b"<!DOCTYPE html><html><svg></svg></html>", "is HTML: it may be the page of an error in place of a download"),
    (b"%PDF-1.7\n", "is a PDF; turn the page into PNG"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is HEIC, which is not read; save it as PNG or JPEG"),
    (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "is HEIF, which is not read; save it as PNG or JPEG"),
    (b"\0\0\0\x18ftypavif\0\0\0\0", "is AVIF, which is not read; save it as PNG or JPEG"),
    (b"\0\0\0\x18ftypisom\0\0\0\0", "is a video or sound; give a PNG"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "is JPEG 2000, which is not read"),
    (b"\xff\x0a\x12", "is JPEG XL, which is not read"),
    (b"8BPS\0\1", "is a Photoshop document, which is not read"),
    (b"\0\0\1\0\1\0", "is an icon file, which is not read"),
    (b"PK\3\4\x14\0", "is an archive or an office document; give the picture that is in it"),
    (b"\x1f\x8b\x08\0", "is compressed; unpack it first"),
    (plain("PNG")[:200], "is cut off; copy it again"),
    (plain("JPEG")[:700], "is damaged, or an uncommon JPEG (image file is truncated"),
    (plain("JPEG")[:100], "is cut off; copy it again"),
    (plain("GIF")[:1000], "is damaged, or an uncommon GIF (image file is truncated"),
    (plain("WEBP")[:300], "is damaged, or an uncommon WebP"),
    (plain("BMP")[:3000], "is damaged, or an uncommon BMP (image file is truncated"),
    (plain("TIFF")[:300], "is damaged, or an uncommon TIFF"),
    (b"BM", "is damaged: it has 0 x 0 pixels; copy it again"),
    (png(50_000, 50_000, b""), "has 50,000 x 50,000 pixels, expected at most 80,000,000 in all; make it smaller"),
    (gif(65_535, 65_535), "has 65,535 x 65,535 pixels, expected at most 80,000,000"),
    (gif(10, 10, frame=(60_000, 60_000)), "has 60,000 x 60,000 pixels, expected at most 80,000,000"),
    (tiff(tiff_lines(60_000, 60_000)), "has 60,000 x 60,000 pixels, expected at most 80,000,000"),
    (
        b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xfe\x3f\0\xfe\x3f\0",
        "has 16,383 x 16,383 pixels, expected at most 26,666,666",
    ),
    (png(100_000, 2, b""), "has 100,000 x 2 pixels, expected at most 65,500 on a side"),
    (png(0, 7, b""), "is damaged: it has 0 x 7 pixels; copy it again"),
]


@pytest.mark.parametrize(("data", "words"), REFUSED, ids=[words[:40] for _, words in REFUSED])
def test_what_is_not_read_is_one_sentence(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=re.escape(f"the picture {words}")):
        open_picture(data)
    path = tmp_path / "it.png"
    path.write_bytes(data)
    with pytest.raises(PictureError, match=re.escape(f"{path} {words}")) as refusal:
        open_picture(path)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_a_changed_byte_of_a_png_is_found() -> None:
    data = bytearray(plain("PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(PictureError, match="is damaged: a checksum does not fit; copy it again"):
        open_picture(bytes(data))


def test_limits_are_settings() -> None:
    data = plain("PNG")
    assert open_picture(data, PictureSettings(max_pixels=WIDTH * HEIGHT, max_bytes=len(data)))
    with pytest.raises(PictureError, match=rf"has 53 x 37 pixels, expected at most {WIDTH * HEIGHT - 1:,} in all"):
        open_picture(data, PictureSettings(max_pixels=WIDTH * HEIGHT - 1))
    with pytest.raises(PictureError, match=f"has {len(data):,} bytes, expected at most {len(data) - 1:,}"):
        open_picture(data, PictureSettings(max_bytes=len(data) - 1))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(PictureError, match="has 200,000,000 bytes, expected at most 100,000,000; give a PNG"):
        open_picture(path)


def test_what_is_no_ordinary_file_is_refused(tmp_path: Path) -> None:
    pipe = [(tmp_path / "pipe.png", "is not an ordinary file")] if hasattr(os, "mkfifo") else []
    for path, _ in pipe:
        os.mkfifo(path)
    for path, words in (
        *pipe,
        (tmp_path, "is not an ordinary file|cannot be read"),
        (Path(os.devnull), "is not an ordinary file"),
        (tmp_path / "missing.png", "cannot be read .No such file or directory."),
        (Path("a\0b"), "cannot be read"),
    ):
        with pytest.raises(PictureError, match=words):
            open_picture(path)


def test_without_pillow_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = plain()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingPackageError, match=r"PIL is not installed; pip install .*\[vision\]"):
        open_picture(data)


def test_memory_that_is_too_short_is_an_error_of_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("edge.runtime.vision.decode._turned", short)
    with pytest.raises(EdgeError, match="memory is too short for a picture of 53 x 37 pixels"):
        open_picture(plain())


@pytest.mark.slow
def test_the_largest_picture_takes_7_bytes_a_pixel(tmp_path: Path) -> None:
    """4 of Pillow's, 3 of ours; and 30 MB for a band and the file."""
    script = f"""
import resource, sys
from pathlib import Path
from edge.runtime.vision.decode import open_picture
import numpy, PIL.Image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert open_picture(Path(sys.argv[1])).pixels.shape == (8000, {MAX_PIXELS // 8000}, 3)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    path = tmp_path / "large.jpg"
    path.write_bytes(encoded(Image.new("RGB", (MAX_PIXELS // 8000, 8000)), "JPEG"))
    used = int(subprocess.run([sys.executable, "-c", script, path], check=True, capture_output=True).stdout)
    assert used < 7 * MAX_PIXELS + 30_000_000
