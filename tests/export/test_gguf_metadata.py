"""The header reader agrees with gguf's own, and says of every damaged file that it is one."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from edge.export.checkpoint.gguf_metadata import read_header
from edge.runtime.errors import CheckpointError, TensorError

DAMAGED = "truncated or damaged GGUF"
STRING, ARRAY = int(GGUFValueType.STRING), int(GGUFValueType.ARRAY)
VALUES: dict[GGUFValueType, list[Any]] = {
    GGUFValueType.UINT8: [0, 255],
    GGUFValueType.INT8: [-128, 127],
    GGUFValueType.UINT16: [0, 65_535],
    GGUFValueType.INT16: [-32_768, 32_767],
    GGUFValueType.UINT32: [0, 2**32 - 1],
    GGUFValueType.INT32: [-(2**31), 2**31 - 1],
    GGUFValueType.FLOAT32: [1.5625e-07, -0.0, float("inf")],
    GGUFValueType.BOOL: [True, False],
    GGUFValueType.STRING: ["", "Ġthe", "你好 🙂\n"],
    GGUFValueType.UINT64: [0, 2**64 - 1],
    GGUFValueType.INT64: [-(2**63), 2**63 - 1],
    GGUFValueType.FLOAT64: [0.1, 1e300],
}
KINDS = (GGMLQuantizationType.F16, GGMLQuantizationType.BF16, GGMLQuantizationType.Q8_0, GGMLQuantizationType.F32)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every type of value, alone and in an array, and four types of tensors; it ends with the last tensor's bytes."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "chatglm")
    for kind, values in VALUES.items():
        for i, value in enumerate(values):
            writer.add_key_value(f"one.{kind.name}.{i}", value, kind)
        writer.add_key_value(f"many.{kind.name}", values, GGUFValueType.ARRAY, sub_type=kind)
    rng = np.random.default_rng(0)
    for kind in KINDS:
        packed = gguf.quantize(rng.standard_normal((1, 2, 32), np.float32), kind)
        writer.add_tensor(f"blk.0.{kind.name}", packed, raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.arange(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_fields_equal_ggufs_reader(small: Path) -> None:
    fields = read_header(small).fields
    reference = gguf.GGUFReader(small).fields
    assert list(fields) == [key for key in reference if not key.startswith("GGUF.")]
    for key, value in fields.items():
        assert value == reference[key].contents(), key
        assert type(value) is type(reference[key].contents()), key
    for kind, values in VALUES.items():
        expected = np.array(values, np.float32).tolist() if kind == GGUFValueType.FLOAT32 else values
        assert fields[f"many.{kind.name}"] == expected
        assert [fields[f"one.{kind.name}.{i}"] for i in range(len(values))] == expected


def test_tensors_equal_ggufs_reader(small: Path) -> None:
    tensors = read_header(small).tensors
    reference = gguf.GGUFReader(small).tensors
    assert list(tensors) == [tensor.name for tensor in reference]
    raw = small.read_bytes()
    for theirs in reference:
        info = tensors[theirs.name]
        assert (info.type, info.offset, info.nbytes) == (theirs.tensor_type, theirs.data_offset, theirs.n_bytes)
        assert info.shape == tuple(reversed(theirs.shape.tolist()))
        stored = np.frombuffer(raw, np.uint8, info.nbytes, info.offset).reshape(info.byte_shape)
        values = gguf.dequantize(stored, info.type)
        assert values.shape == info.shape
        np.testing.assert_array_equal(values, gguf.dequantize(theirs.data, theirs.tensor_type))


def test_a_published_file(demo_gguf: Path) -> None:
    header, reference = read_header(demo_gguf), gguf.GGUFReader(demo_gguf)
    for key, value in header.fields.items():
        assert value == reference.fields[key].contents(), key
    assert [(name, info.offset, info.nbytes) for name, info in header.tensors.items()] == [
        (tensor.name, tensor.data_offset, tensor.n_bytes) for tensor in reference.tensors
    ]


def test_truncated_at_every_byte(small: Path, tmp_path: Path) -> None:
    raw = small.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in range(len(raw)):
        cut.write_bytes(raw[:size])
        with pytest.raises(CheckpointError, match=DAMAGED):
            read_header(cut)


@pytest.mark.parametrize("byte", [0x00, 0x7F, 0xFF])
def test_every_byte_altered(small: Path, tmp_path: Path, byte: int) -> None:
    """Text and numbers may read as others; nothing else may happen than that or the error."""
    raw = small.read_bytes()
    altered = tmp_path / "altered.gguf"
    refused = 0
    for i in range(min(tensor.offset for tensor in read_header(small).tensors.values())):
        altered.write_bytes(raw[:i] + bytes([byte]) + raw[i + 1 :])
        try:
            read_header(altered)
        except CheckpointError:
            refused += 1
    assert refused > 100


def u32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def u64(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def text(value: bytes) -> bytes:
    return u64(len(value)) + value


def field(key: bytes, code: int, value: bytes) -> bytes:
    return text(key) + u32(code) + value


def tensor(name: bytes, dimensions: list[int], code: int = 0, offset: int = 0) -> bytes:
    return text(name) + u32(len(dimensions)) + u64(*dimensions) + u32(code) + u64(offset)


def make(path: Path, fields: list[bytes], tensors: list[bytes], *, version: int = 3, padding: int = 4096) -> Path:
    head = b"GGUF" + u32(version) + u64(len(tensors), len(fields)) + b"".join([*fields, *tensors])
    path.write_bytes(head + bytes(padding))
    return path


def test_arrays_in_arrays_and_version_2(tmp_path: Path) -> None:
    nested = u32(ARRAY) + u64(2) + u32(4) + u64(2) + u32(1, 2) + u32(STRING) + u64(1) + text(b"x")
    header = read_header(make(tmp_path / "x.gguf", [field(b"a", ARRAY, nested)], [], version=2))
    assert header.fields == {"a": [[1, 2], ["x"]]}
    assert header.tensors == {}


def test_alignment_scalars_and_empty_tensors(tmp_path: Path) -> None:
    fields = [field(b"general.alignment", 4, u32(64))]
    tensors = [tensor(b"none", [32, 0], 8), tensor(b"scalar", [], 0, 0), tensor(b"row", [32, 1], 8, 64)]
    header = read_header(make(tmp_path / "x.gguf", fields, tensors))
    assert [info.offset % 64 for info in header.tensors.values()] == [0, 0, 0]
    assert [info.nbytes for info in header.tensors.values()] == [0, 4, 34]
    assert [info.shape for info in header.tensors.values()] == [(0, 32), (), (1, 32)]
    assert [info.byte_shape for info in header.tensors.values()] == [(0, 0), (4,), (1, 34)]


HUGE = 2**63
DEEP = u32(ARRAY) + u64(1)


@pytest.mark.parametrize(
    ("fields", "tensors", "what"),
    [
        ([field(b"a", STRING, u64(HUGE))], [], "a string that ends beyond the file"),
        ([u64(2**64 - 1)], [], "a string that ends beyond the file"),
        ([field(b"a", STRING, text(b"\xff"))], [], "a string that is not UTF-8"),
        ([field(b"a", ARRAY, u32(STRING) + u64(HUGE))], [], f"an array of {HUGE} values"),
        ([field(b"a", ARRAY, u32(STRING) + u64(1 << 21))], [], "a string that ends beyond the file"),
        ([field(b"a", ARRAY, u32(0) + u64(1 << 21))], [], "2097152 bytes expected"),
        ([field(b"a", ARRAY, u32(12) + u64(HUGE))], [], f"an array of {HUGE} values"),
        ([field(b"a", ARRAY, DEEP * 5000)], [], "an array of 1 values in 4 others"),
        ([field(b"a", ARRAY, u32(13) + u64(1))], [], "a value of type 13"),
        ([field(b"a", 13, b"")], [], "a value of type 13"),
        ([field(b"a", 7, b"\x02")], [], "a bool that is neither 0 nor 1"),
        ([field(b"a", 0, b"\x02")] * 2, [], "key 'a' a second time"),
        ([field(b"general.alignment", 4, u32(0))], [], "general.alignment 0"),
        ([field(b"general.alignment", 4, u32(48))], [], "general.alignment 48"),
        ([field(b"general.alignment", STRING, text(b"32"))], [], "general.alignment '32'"),
        ([field(b"general.alignment", 7, b"\x01")], [], "general.alignment True"),
        ([field(b"general.alignment", 4, u32(1 << 31))], [], "general.alignment 2147483648"),
        ([], [tensor(b"t", [8])] * 2, "tensor t a second time"),
        ([], [tensor(b"t", [1] * 5)], "tensor t of 5 dimensions"),
        ([], [text(b"t") + u32(2**32 - 1)], "tensor t of 4294967295 dimensions"),
        ([], [tensor(b"t", [8], 8)], "tensor t with rows of 8, and Q8_0 has blocks of 32"),
        ([], [tensor(b"t", [8], 0, 16)], "tensor t at bytes"),
        ([], [tensor(b"t", [8], 0, HUGE)], "tensor t at bytes"),
        ([], [tensor(b"t", [HUGE, HUGE])], "tensor t at bytes"),
    ],
)
def test_damaged_headers(tmp_path: Path, fields: list[bytes], tensors: list[bytes], what: str) -> None:
    path = make(tmp_path / "x.gguf", fields, tensors)
    with little_memory(), pytest.raises(CheckpointError, match=f"{DAMAGED}, .*{what}"):
        read_header(path)


@pytest.mark.parametrize("counts", [u64(HUGE, 0), u64(0, HUGE)])
def test_huge_counts(tmp_path: Path, counts: bytes) -> None:
    """Of what does not fit into the file, nothing is looped over."""
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + u32(3) + counts + bytes(1 << 20))
    with little_memory(), pytest.raises(CheckpointError, match=f"{HUGE} (tensors|fields) in 1048576 bytes"):
        read_header(path)


@pytest.mark.parametrize("version", [0, 1, 4, 0x03000000])
def test_other_versions(tmp_path: Path, version: int) -> None:
    name = "3, big-endian" if version == 0x03000000 else f"{version:#x}"
    with pytest.raises(CheckpointError, match=f"GGUF version {name}, expected 2 or 3, .*convert the model again"):
        read_header(make(tmp_path / "x.gguf", [], [], version=version))


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"<html>" * 100)
    with pytest.raises(CheckpointError, match="no 'GGUF'"):
        read_header(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("code", "word"), [(31, "type Q4_0_4_4, which was removed"), (37, "type IQ4_NL_4_8, which was"), (137, "type 137")]
)
def test_types_that_nobody_reads_any_more(tmp_path: Path, code: int, word: str) -> None:
    """The file is not damaged, and comes again as it is."""
    path = make(tmp_path / "x.gguf", [], [tensor(b"blk.0.attn_q.weight", [32], code)])
    with pytest.raises(TensorError, match=f"attn_q.weight has {word}.*get another quantization") as error:
        read_header(path)
    assert "download" not in str(error.value)


def test_every_bit_of_an_offset(small: Path, tmp_path: Path) -> None:
    """Tensors that overlap, and gaps, are errors; the order in the header may be another than that in the file."""
    raw = small.read_bytes()
    for name, info in read_header(small).tensors.items():
        at = raw.index(name.encode()) + len(name) + 4 + 8 * len(info.shape) + 4
        assert struct.unpack_from("<Q", raw, at)[0] == info.offset - read_header(small).tensors["blk.0.F16"].offset
        for bit in range(64):
            altered = bytearray(raw)
            altered[at + bit // 8] ^= 1 << bit % 8
            (tmp_path / "x.gguf").write_bytes(altered)
            with pytest.raises(CheckpointError, match=r"is said to begin at byte|at bytes"):
                read_header(tmp_path / "x.gguf")
    swapped = [tensor(b"b", [8], 0, 32), tensor(b"a", [8], 0, 0)]
    assert list(read_header(make(tmp_path / "y.gguf", [], swapped)).tensors) == ["b", "a"]


def test_what_is_no_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    for name in ("folder.gguf", "pipe.gguf", "loop.gguf", "absent.gguf"):
        with pytest.raises(CheckpointError, match=name):
            read_header(tmp_path / name)


def test_headers_longer_than_the_first_read(tmp_path: Path) -> None:
    value = b"x" * (17 << 20)
    path = make(tmp_path / "x.gguf", [field(b"a", STRING, text(value)), field(b"b", 0, b"\x02")], [tensor(b"t", [8])])
    header = read_header(path)
    assert header.fields == {"a": value.decode(), "b": 2}
    assert header.tensors["t"].offset > 17 << 20
    path.write_bytes(path.read_bytes()[: (17 << 20) + 60])
    with pytest.raises(CheckpointError, match=DAMAGED):
        read_header(path)
    make(path, [field(b"a", STRING, text(b"x")), field(b"a", 0, b"\x02")], [], padding=17 << 20)
    with pytest.raises(CheckpointError, match="key 'a' a second time"):
        read_header(path)
