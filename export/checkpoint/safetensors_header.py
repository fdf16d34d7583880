"""The header of a safetensors file, which comes before the weights: where each tensor is.

In: a file. Out: an `Entry` for each tensor, or a TensorError. Everything is checked against the file before it is used:
the bytes of the tensors follow each other from the header to the end of the file, as the format requires (README of
huggingface/safetensors, "Format"), so none overlap. Knows nothing about names, and reads no weights.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from edge.export.checkpoint.weight_files import AGAIN, HEAD_BYTES, open_weights, other_kind
from edge.runtime.errors import TensorError, plain, shown
from edge.runtime.json_reader import parse_json

MAX_HEADER = 100_000_000  # bytes, the format's limit
_MAX_RANK, _MAX_DIM = 8, 1 << 48  # far beyond what files have, yet their product has no thousand digits
_METADATA = "__metadata__"
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor is, and its type; its values are not read."""

    file: Path
    dtype: str  # the format's name for it, like "BF16"
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    stop: int


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a file by name. Raises TensorError."""
    with open_weights(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(HEAD_BYTES)
        header_size = int.from_bytes(head[:8], "little")
        if kind := other_kind(head):
            raise TensorError(f"{file} is {kind}")
        if len(head) < 8 or min(header_size, MAX_HEADER) > size - 8:
            raise TensorError(f"{file}: {size} bytes, too few for its header; it is truncated, {AGAIN}")
        if header_size > MAX_HEADER:
            raise TensorError(
                f"{file}: a header of {header_size:,} bytes, expected at most {MAX_HEADER:,}; this is not a "
                f"safetensors file, {AGAIN}"
            )
        stream.seek(8)
        raw = stream.read(header_size)
    header = parse_json(raw, f"the header of {file}", TensorError, AGAIN, unique_keys=True)
    if not isinstance(header, dict):
        raise TensorError(f"{file}: the header is {shown(header)}, expected a JSON object; {AGAIN}")
    if not isinstance(header.pop(_METADATA, {}), dict):
        raise TensorError(f"{file}: {_METADATA} in the header is not a JSON object; {AGAIN}")
    begin = 8 + header_size
    entries = {name: _entry(file, name, info, begin, size) for name, info in header.items()}
    _check_neighbours(file, entries, begin, size)
    return entries


def _entry(file: Path, name: str, info: Any, begin: int, size: int) -> Entry:  # Any: JSON of theirs
    known: dict[str, Any] = info if isinstance(info, dict) else {}
    dtype, shape, place = known.get("dtype"), known.get("shape"), known.get("data_offsets")
    if not isinstance(dtype, str) or not _is_numbers(shape) or not _is_numbers(place) or len(place) != 2:
        raise TensorError(
            f"{file}: tensor {plain(name)} is {shown(info)} in the header, expected dtype, shape and data_offsets; "
            f"{AGAIN}"
        )
    if dtype not in _BITS:
        raise TensorError(
            f"{file}: tensor {plain(name)} is {shown(dtype)}, expected one of {', '.join(_BITS)}; {AGAIN}"
        )
    start, stop = begin + place[0], begin + place[1]
    if stop < start or stop > size:
        raise TensorError(
            f"{file}: tensor {plain(name)} is at bytes {start} to {stop} of a file of {size}; the file is truncated or "
            f"altered, {AGAIN}"
        )
    if len(shape) > _MAX_RANK:
        raise TensorError(
            f"{file}: tensor {plain(name)} has {len(shape)} dimensions, expected at most {_MAX_RANK}; {AGAIN}"
        )
    needed = -(-math.prod(shape) * _BITS[dtype] // 8)
    if stop - start != needed:
        raise TensorError(
            f"{file}: tensor {plain(name)} of shape {shape} needs {needed} bytes but has {stop - start}; the header is "
            f"damaged, {AGAIN}"
        )
    return Entry(file, dtype, tuple(shape), start, stop)


def _is_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < _MAX_DIM for n in value)


def _check_neighbours(file: Path, entries: dict[str, Entry], begin: int, size: int) -> None:
    """Raises TensorError where two tensors share bytes, and where bytes belong to no tensor."""
    end, before = begin, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            what = "overlaps" if entry.start < end else f"leaves {entry.start - end} bytes unused after"
            raise TensorError(
                f"{file}: tensor {plain(name)} at byte {entry.start} {what} {before}, which ends at {end}; the header "
                f"is damaged, {AGAIN}"
            )
        end, before = entry.stop, f"tensor {plain(name)}"
    if end != size:
        raise TensorError(
            f"{file}: {size - end} bytes after {before} belong to no tensor; the file is altered, {AGAIN}"
        )
