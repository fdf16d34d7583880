"""Headers of safetensors files: what the format's own package reads is read, and what it refuses is one error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save, save_file

from edge.export.checkpoint.safetensors_header import MAX_HEADER, read_header
from edge.runtime.errors import TensorError

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path: Path, header: bytes | dict[str, Any], body: int = 16, *, size: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if size is None else size).to_bytes(8, "little") + raw + bytes(body))
    return path


def refused_by_both(path: Path) -> str:
    with pytest.raises(TensorError) as error:
        read_header(path)
    with pytest.raises(SafetensorError), safe_open(path, "np"):
        pass
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 600
    return str(error.value)


def test_what_the_package_writes(tmp_path: Path) -> None:
    """Of every size of item, empty tensors and scalars; metadata beside them."""
    tensors: dict[str, npt.NDArray[Any]] = {
        "a": np.arange(6, dtype=np.float64).reshape(2, 3),
        "b": np.ones((3, 0, 2), np.float16),
        "c": np.array(1, np.int8),
        "d": np.ones(5, np.bool_),
        "e": np.ones(0, np.float32),
        "f": np.ones((1, 7), np.uint16),
    }
    save_file(tensors, tmp_path / "x.safetensors", {"format": "np"})
    raw = (tmp_path / "x.safetensors").read_bytes()
    entries = read_header(tmp_path / "x.safetensors")
    assert {name: entry.shape for name, entry in entries.items()} == {k: v.shape for k, v in tensors.items()}
    for name, entry in entries.items():
        assert raw[entry.start : entry.stop] == tensors[name].tobytes()


@pytest.mark.parametrize(
    "offsets",
    [
        {"a": [0, 8], "b": [0, 8]},  # the same bytes
        {"a": [0, 8], "b": [4, 12]},
        {"a": [8, 16], "b": [0, 8], "c": [8, 16]},
        {"a": [0, 8]},  # bytes that belong to no tensor, after, between and before
        {"a": [0, 8], "b": [12, 20]},
        {"a": [8, 16]},
    ],
)
def test_tensors_that_overlap_or_leave_holes(tmp_path: Path, offsets: dict[str, list[int]]) -> None:
    header = {name: GOOD | {"data_offsets": place} for name, place in offsets.items()}
    said = refused_by_both(write(tmp_path / "x.safetensors", header, 20 if [12, 20] in offsets.values() else 16))
    assert "overlaps" in said or "unused after" in said or "belong to no tensor" in said


def test_two_tensors_of_a_checkpoint_with_the_same_bytes(tmp_path: Path) -> None:
    """One digit of a header: layer 1 would get the weights of layer 0."""
    raw = save({name: np.full((4, 4), i, np.float32) for i, name in enumerate("abc")})
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header["b"]["data_offsets"] = header["a"]["data_offsets"]
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    assert "tensor b at byte" in refused_by_both(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": ["F32"]}, {"dtype": None}, {"dtype": "F33"}, {"dtype": "F32\x1b[2J" * 500}, {"shape": 2},
        {"shape": None}, {"shape": [2.0]}, {"shape": ["2"]}, {"shape": [True, 2]}, {"shape": [-1, -2]},
        {"shape": [1 << 40, 1 << 40]}, {"shape": [10**39]}, {"shape": {"0": 2}}, {"data_offsets": [0.0, 8.0]},
        {"data_offsets": [0]}, {"data_offsets": [0, 8, 8]}, {"data_offsets": None}, {"data_offsets": [8, 0]},
        {"data_offsets": [-8, 0]}, {"data_offsets": [0, 1 << 63]}, {"data_offsets": [[0, 8]]}, {"data_offsets": "08"},
    ],
    ids=str,
)  # fmt: skip
def test_entries_that_are_none(tmp_path: Path, change: dict[str, object]) -> None:
    assert "tensor a" in refused_by_both(write(tmp_path / "x.safetensors", {"a": GOOD | change}, 8))


@pytest.mark.parametrize(
    "header",
    [
        b"", b"[]", b"null", b"1", b'"a"', b"{", b'{"a": 1}', b'{"a": []}', b'{"a": {}}', b'{"__metadata__": []}',
        b'{"a":' * 5000 + b"1" + b"}" * 5000, b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff\xfe",
    ],
    ids=lambda header: header[:12],
)  # fmt: skip
def test_headers_that_are_none(tmp_path: Path, header: bytes) -> None:
    refused_by_both(write(tmp_path / "x.safetensors", header))


def test_a_name_twice(tmp_path: Path) -> None:
    """The second would win, and nothing would say so."""
    one = json.dumps(GOOD)
    path = write(tmp_path / "x.safetensors", f'{{"a": {one}, "a": {one}}}'.encode(), 8)
    with pytest.raises(TensorError, match="the key 'a' twice"):
        read_header(path)


def test_many_names_and_one_twice(tmp_path: Path) -> None:
    """In time that grows with their number, and not with its square."""
    names = ",".join(f'"{i}":1' for i in range(200_000))
    with pytest.raises(TensorError, match="the key '199999' twice"):
        read_header(write(tmp_path / "x.safetensors", f'{{{names},"199999":1}}'.encode()))


def test_lengths_of_headers(tmp_path: Path) -> None:
    """A sparse file of any size costs nothing to write, so its size proves nothing."""
    path = write(tmp_path / "x.safetensors", b"{}", size=2_000_000_000)
    assert "too few for its header" in refused_by_both(path)
    os.truncate(path, 3_000_000_000)
    assert "a header of 2,000,000,000 bytes" in refused_by_both(path)
    assert MAX_HEADER == 100_000_000
    for size in (2**63, 2**64 - 1):
        assert "header" in refused_by_both(write(path, b"{}", size=size))
    for length in range(8):
        path.write_bytes(b"\0" * length)
        assert "too few for its header" in refused_by_both(path)


def test_names_of_tensors_in_messages(tmp_path: Path) -> None:
    for name in ("\x1b[2J", "x" * 5000, "a\nb"):
        with pytest.raises(TensorError) as error:
            read_header(write(tmp_path / "x.safetensors", {name: GOOD | {"shape": [3]}}, 8))
        assert len(str(error.value)) < 600
        assert str(error.value).isprintable()


def test_what_is_no_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zeros.safetensors").symlink_to("/dev/zero")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    for name in ("folder", "pipe", "zeros", "loop", "absent"):
        with pytest.raises(TensorError, match=f"{name}.safetensors"):
            read_header(tmp_path / f"{name}.safetensors")
