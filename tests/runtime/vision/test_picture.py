"""A picture is its pixels: equal ones are one, however they were stored, and nobody can change them."""

from __future__ import annotations

import dataclasses
import hashlib
import struct

import numpy as np
import pytest

from edge.runtime.errors import PictureError, SettingsError
from edge.runtime.vision.decode import open_picture
from edge.runtime.vision.picture import Picture, PictureSettings
from tests.runtime.vision.files import pixels, plain


def test_files_with_equal_pixels_are_equal_pictures() -> None:
    found = [open_picture(plain(kind)) for kind in ("PNG", "BMP", "TIFF")] + [Picture.of(pixels())]
    assert len(set(found)) == len({picture.sha256 for picture in found}) == 1
    assert len({picture.told for picture in found}) == 4


def test_one_value_or_the_shape_makes_another_picture() -> None:
    changed = pixels()
    changed[-1, -1, -1] ^= 1
    zeros = [np.zeros(shape, np.uint8) for shape in ((2, 3, 3), (3, 2, 3), (1, 6, 3))]
    shapes = [pixels(), changed, pixels().reshape(53, 37, 3), *zeros]
    assert len({Picture.of(shape).sha256 for shape in shapes}) == len(shapes)
    assert Picture.of(pixels()) != pixels().tobytes()


def test_the_hash_stays_what_it_is() -> None:
    """Rows of pictures are kept on disks under it."""
    values = bytes(range(18))
    hashed = b"edgeglm picture 1\0" + struct.pack("<QQ", 3, 2) + values
    found = Picture.of(np.frombuffer(values, np.uint8).reshape(3, 2, 3))
    assert found.sha256 == hashlib.sha256(hashed).hexdigest()


def test_pixels_cannot_be_changed() -> None:
    picture = open_picture(plain())
    with pytest.raises(ValueError, match="read-only"):
        picture.pixels[0, 0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        picture.told = "another"  # type: ignore[misc]


def test_a_view_of_an_array_is_copied_and_counts_as_it_looks() -> None:
    turned = Picture.of(pixels()[::-1])
    assert turned.pixels.flags.c_contiguous
    assert turned == Picture.of(pixels()[::-1].copy())
    assert turned.told == "53 x 37"


def test_other_arrays_are_refused() -> None:
    for wrong, words in (
        (
            np.zeros((4, 4, 3), np.float32),
            r"are \(4, 4, 3\) of float32, expected an array \(height, width, 3\) of uint8",
        ),
        (np.zeros((4, 4), np.uint8), r"are \(4, 4\) of uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"are \(4, 4, 4\) of uint8"),
        (np.zeros((0, 4, 3), np.uint8), r"are \(0, 4, 3\) of uint8"),
        ("a.png", "are 'a.png', expected an array"),
    ):
        with pytest.raises(PictureError, match=words):
            Picture.of(wrong)  # type: ignore[arg-type]


def test_settings_are_checked() -> None:
    assert PictureSettings(max_pixels=1e6).max_pixels == 1_000_000  # type: ignore[arg-type]
    for wrong in ({"max_pixels": 0}, {"max_pixels": 1 << 30}, {"orientation": 1}, {"max_bytes": -1}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            PictureSettings(**wrong)  # type: ignore[arg-type]
