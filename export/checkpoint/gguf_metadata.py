"""The header of a GGUF file, which comes before the weights: metadata, and where each tensor is.

In: a file. Out: a `Header` of plain Python values, or a CheckpointError. Every length is checked against the file and
against a plausible limit before it is used. Knows nothing about what the keys mean, and reads no weights:
`gguf.dequantize` takes the bytes at a tensor's offset, as uint8 of its byte_shape.

The format is that of ggml-org/ggml docs/gguf.md, versions 2 and 3, little-endian. `gguf.GGUFReader` reads it too, but
makes two arrays of every string: 11 s and 0.8 GB for GLM-4's vocabulary, where this takes 0.3 s and 0.1 GB.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import gguf
import numpy as np

from edge.export.checkpoint.weight_files import AGAIN, open_weights
from edge.runtime.errors import CheckpointError, TensorError, plain, shown

_VERSIONS = (2, 3)
_ALIGNMENT = 32  # of the weights, if general.alignment is missing
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NAMES = ("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<u1", None, None, "<u8", "<i8", "<f8")
_NUMBERS = {code: np.dtype(name) for code, name in enumerate(_NAMES) if name}
# Far more than files have (GLM-4's: 10 MB, 0.6 million, 40, 523), yet a damaged length cannot fill the memory.
_MAX_HEADER = 1 << 27  # bytes
_FIRST_READ = 1 << 24  # bytes, which is enough for most files
_MAX_ITEMS = 1 << 22  # in all arrays together
_MAX_FIELDS = 1 << 14
_MAX_TENSORS = 1 << 18
_FIELD_BYTES, _TENSOR_BYTES = 13, 24  # of a field and of a tensor's entry, at least
_MAX_DEPTH = 4  # arrays in arrays
_MAX_DIMENSIONS = 4
_ALIGNMENTS = tuple(1 << bits for bits in range(21))
# Types that llama.cpp has removed (ggml-org/llama.cpp, ggml/include/ggml.h).
_REMOVED = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor is, and its type; its values are not read."""

    shape: tuple[int, ...]  # rows first; the file stores the reverse
    type: gguf.GGMLQuantizationType
    offset: int  # bytes from the beginning of the file
    nbytes: int

    @property
    def byte_shape(self) -> tuple[int, ...]:
        """The shape of its bytes: rows of whole blocks."""
        rows = self.shape[:-1]
        return (*rows, self.nbytes // math.prod(rows)) if math.prod(rows) else (*rows, 0)


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata by key, as numbers, bools, strings and lists of them; and tensors by name, in the order of the file."""

    fields: Mapping[str, object]
    tensors: Mapping[str, TensorInfo]


def read_header(path: Path) -> Header:
    """The header of a file. Raises CheckpointError where it is truncated, damaged or another version, or overlaps."""
    with open_weights(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, _FIRST_READ))  # not mapped: a file that shrinks meanwhile would end the process
        try:
            return _header(_Cursor(data, size, path))
        except _LongHeader:
            return _header(_Cursor(data + file.read(min(size, _MAX_HEADER) - len(data)), size, path))


class _LongHeader(Exception):
    """The header continues after the bytes that were read."""


class _Cursor:
    """A position in the beginning of a file; every read advances it, but never beyond the end."""

    def __init__(self, data: bytes, size: int, path: Path) -> None:
        self.data = data
        self.size = size  # of the whole file
        self.end = len(data)
        self.items_left = _MAX_ITEMS
        self.path = path
        self.at = 0

    def fail(self, what: str) -> NoReturn:
        if self.end == _FIRST_READ < self.size:  # the cause may just be that reading stopped here
            raise _LongHeader
        raise CheckpointError(f"{self.path}: truncated or damaged GGUF, {what} at byte {self.at}; {AGAIN}")

    def take(self, nbytes: int) -> bytes:
        if nbytes > self.end - self.at:
            self.fail(f"{nbytes} bytes expected and {self.end - self.at} left")
        start, self.at = self.at, self.at + nbytes
        return self.data[start : self.at]

    def check_count(self, what: str, count: int, nbytes: int, most: int) -> None:
        """Fail on an impossible count before it is used: each item takes at least `nbytes`."""
        if count > most or count * nbytes > self.end - self.at:
            self.fail(f"{count} {what} in {self.end - self.at} bytes")

    def numbers(self, code: int, count: int) -> list[Any]:
        dtype = _NUMBERS[code]
        values = np.frombuffer(self.take(count * dtype.itemsize), dtype)
        if code != _BOOL:
            return list(values.tolist())
        if values.size and values.max() > 1:
            self.fail("a bool that is neither 0 nor 1")
        return list(values.astype(np.bool_).tolist())

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def strings(self, count: int) -> list[str]:
        """Many strings; inlined for speed, since a vocabulary has half a million."""
        data, at, limit, unpack = self.data, self.at, self.end, _U64.unpack_from
        found = []
        for _ in range(count):
            start = at + 8
            end = start + unpack(data, at)[0] if start <= limit else start
            if end > limit:
                self.at = at
                self.fail("a string that ends beyond the file")
            try:
                found.append(str(data[start:end], "utf-8"))
            except UnicodeDecodeError:
                self.at = at
                self.fail("a string that is not UTF-8")
            at = end
        self.at = at
        return found

    def value(self, code: int, depth: int = 0) -> Any:
        if code == _ARRAY:
            code, count = self.u32(), self.u64()
            self.items_left -= count + 1  # an empty array is still a list
            if self.items_left < 0 or depth == _MAX_DEPTH:
                self.fail(f"an array of {count} values in {depth} others")
            if code == _ARRAY:
                return [self.value(code, depth + 1) for _ in range(count)]
            return self._values(code, count)
        return self._values(code, 1)[0]

    def _values(self, code: int, count: int) -> list[Any]:
        if code == _STRING:
            return self.strings(count)
        if code not in _NUMBERS:
            self.fail(f"a value of type {code}, known are 0 to 12,")
        return self.numbers(code, count)


def _header(cursor: _Cursor) -> Header:
    if cursor.take(4) != b"GGUF":
        cursor.fail("no 'GGUF'")
    version = cursor.u32()
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = f"{swapped}, big-endian" if swapped in _VERSIONS else f"{version:#x}"
        raise CheckpointError(
            f"{cursor.path}: GGUF version {what}, expected 2 or 3, little-endian; get such a file, or convert the "
            "model again"
        )
    num_tensors, num_fields = cursor.u64(), cursor.u64()
    cursor.check_count("tensors", num_tensors, _TENSOR_BYTES, _MAX_TENSORS)
    cursor.check_count("fields", num_fields, _FIELD_BYTES, _MAX_FIELDS)
    fields: dict[str, Any] = {}
    for _ in range(num_fields):
        (key,) = cursor.strings(1)
        if key in fields:
            cursor.fail(f"key {shown(key)} a second time")
        fields[key] = cursor.value(cursor.u32())
    infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(num_tensors):
        (name,) = cursor.strings(1)
        if name in infos:
            cursor.fail(f"tensor {plain(name)} a second time")
        num_dimensions = cursor.u32()
        if num_dimensions > _MAX_DIMENSIONS:
            cursor.fail(f"tensor {plain(name)} of {num_dimensions} dimensions")
        dimensions = [cursor.u64() for _ in range(num_dimensions)]
        infos[name] = tuple(reversed(dimensions)), cursor.u32(), cursor.u64()
    alignment = fields.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or alignment not in _ALIGNMENTS:
        cursor.fail(f"general.alignment {shown(alignment)}, which is not a power of two up to {_ALIGNMENTS[-1]},")
    start = -(-cursor.at // alignment) * alignment
    tensors = {name: _tensor(cursor, name, *info, start, alignment) for name, info in infos.items()}
    _check_neighbours(cursor, tensors, start, alignment)
    return Header(fields, tensors)


def _tensor(
    cursor: _Cursor, name: str, shape: tuple[int, ...], code: int, offset: int, start: int, alignment: int
) -> TensorInfo:
    try:
        kind = gguf.GGMLQuantizationType(code)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        known = f"type {_REMOVED[code]}, which was removed" if code in _REMOVED else f"type {code}, which is unknown"
        raise TensorError(
            f"{cursor.path}: tensor {plain(name)} has {known}; get another quantization of the model, like Q8_0 or "
            "Q4_K_M"
        ) from None
    if shape and shape[-1] % block:
        cursor.fail(f"tensor {plain(name)} with rows of {shape[-1]}, and {kind.name} has blocks of {block},")
    nbytes = math.prod(shape) // block * block_bytes
    if offset % alignment or start + offset + nbytes > cursor.size:
        cursor.fail(f"tensor {plain(name)} at bytes {start + offset} to {start + offset + nbytes} of {cursor.size},")
    return TensorInfo(shape, kind, start + offset, nbytes)


def _check_neighbours(cursor: _Cursor, tensors: Mapping[str, TensorInfo], start: int, alignment: int) -> None:
    """Tensors follow one another, each at the next multiple of the alignment; llama.cpp reads no other files either."""
    expected, before = start, "the header"
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != expected:
            raise TensorError(
                f"{cursor.path}: tensor {plain(name)} is said to begin at byte {info.offset}, but {before} before it "
                f"ends at {expected}; the file is damaged, {AGAIN}"
            )
        expected = info.offset + -(-info.nbytes // alignment) * alignment
        before = f"tensor {plain(name)}"
