"""golden.npz is believed only as far as it is what export writes."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.runtime import bundle as bundles
from edge.runtime.errors import BundleError
from edge.runtime.golden import MAX_TOKENS, read_golden
from edge.runtime.verify import verify
from tests.forging import forge_file

VOCAB = 320
ARRAYS: dict[str, npt.NDArray[Any]] = {
    "ids": np.arange(8),
    "logits": np.ones((4, VOCAB), np.float32),
    "float_logits": np.full((4, VOCAB), 2, np.float32),
}


def npz(**changes: npt.NDArray[Any] | None) -> bytes:
    """The file that numpy writes of these arrays; None leaves one out."""
    arrays = {name: array for name, array in (ARRAYS | changes).items() if array is not None}
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=True, **arrays)
    return stream.getvalue()


def npy(header: bytes, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + content


def with_ids(content: bytes, kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive whose ids.npy has this content."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(npz())) as whole, zipfile.ZipFile(stream, "w", kind) as archive:
        for name in whole.namelist():
            archive.writestr(name, content if name == "ids.npy" else whole.read(name))
    return stream.getvalue()


HEADER = b"{'descr': '<i8', 'fortran_order': False, 'shape': (%s,), }"
WRONG = {
    "empty": b"",
    "no archive": b"PK\x03\x04" + bytes(100),
    "cut off": npz()[:-30],
    "no ids": npz(ids=None),
    "no logits": npz(logits=None),
    "objects": npz(ids=np.array([{}, 1], object)),
    "ids of another type": npz(ids=np.arange(8.0)),
    "ids outside the vocabulary": npz(ids=np.array([VOCAB])),
    "negative ids": npz(ids=np.array([-1])),
    "no tokens": npz(ids=np.arange(0)),
    "ids of two dims": npz(ids=np.zeros((2, 4), np.int64)),
    "more ids than any text": npz(ids=np.zeros(2 * MAX_TOKENS, np.int64)),
    "logits of another vocabulary": npz(logits=np.ones((4, 8), np.float32)),
    "more rows than tokens": npz(logits=np.ones((9, VOCAB), np.float32), float_logits=np.ones((9, VOCAB), np.float32)),
    "other numbers of rows": npz(logits=np.ones((3, VOCAB), np.float32)),
    "no rows": npz(logits=np.ones((0, VOCAB), np.float32), float_logits=np.ones((0, VOCAB), np.float32)),
    "NaN": npz(logits=np.full((4, VOCAB), np.nan, np.float32)),
    "infinity": npz(float_logits=np.full((4, VOCAB), np.inf, np.float32)),
    "zeros": npz(logits=np.zeros((4, VOCAB), np.float32)),
    "half floats": npz(logits=np.ones((4, VOCAB), np.float16)),
    "a bomb": with_ids(bytes(300_000_000)),
    "an array larger than the file": with_ids(npy(HEADER % b"1000000000000")),
    "a size beyond 64 bits": with_ids(npy(HEADER % b"99999999999999999999999")),
    "a negative size": with_ids(npy(HEADER % b"-8", bytes(64))),
    "a header that is no Python": with_ids(npy(b"{'descr': ")),
    "a header that calls": with_ids(npy(b"__import__('os').system('false')")),
    "a long header": with_ids(npy(b"(" * 60_000)),
    "a header of another version": with_ids(b"\x93NUMPY\x09\0" + bytes(100)),
    "no numpy array": with_ids(b"[1, 2]"),
    "an empty array": with_ids(b""),
    "a method of compression": with_ids(npy(HEADER % b"0"), zipfile.ZIP_BZIP2),
}


def test_what_export_writes_is_read() -> None:
    golden = read_golden(npz(), VOCAB)
    np.testing.assert_array_equal(golden.ids, ARRAYS["ids"])
    np.testing.assert_array_equal(golden.logits, ARRAYS["logits"])
    np.testing.assert_array_equal(golden.float_logits, ARRAYS["float_logits"])
    columns = np.asfortranarray(np.arange(4 * VOCAB, dtype=np.float32).reshape(4, VOCAB))
    np.testing.assert_array_equal(read_golden(npz(logits=columns), VOCAB).logits, columns)


@pytest.mark.parametrize("raw", WRONG.values(), ids=WRONG.keys())
def test_what_is_none_is_one_line(raw: bytes) -> None:
    with pytest.raises(BundleError, match=r"golden\.npz [^\n]*; export the bundle again$"):
        read_golden(raw, VOCAB)


def test_an_archive_that_asks_for_a_password() -> None:
    raw = bytearray(npz())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags of an entry, twice
        at = raw.index(mark) + offset
        raw[at] |= 1
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read as arrays \(.*password"):
        read_golden(bytes(raw), VOCAB)


@pytest.mark.parametrize("name", ["no logits", "NaN", "logits of another vocabulary", "cut off"])
def test_verify_says_so(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    """With a hash that fits."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    forge_file(bundle, bundles.GOLDEN, WRONG[name])
    with pytest.raises(BundleError, match=r"bundle: golden\.npz .*; export the bundle again"):
        verify(bundle)
