"""The weights of a bundle in one file, written while they are made and read back from the map.

In: weights by canonical name, one after the other. Out: the file (which becomes openvino_model.bin), where each
constant is in it, and the weights again as views into the mapped file. Knows nothing about graphs, recipes or
checkpoints.

A constant is known as graphs know it: `NAME`, for a packed tensor also `NAME/scale` and `NAME/zero_point`, and the same
for each of the two narrow matrices that may be added to it, `NAME/lora_a` and `NAME/lora_b`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.export.tensors import FloatArray, LowRank, PackedTensor, Weight

ALIGNMENT = 64  # bytes; vector loads of any engine


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """Where one weight is in the file, and what its bytes mean."""

    shape: tuple[int, ...]
    bits: int  # 32 and 16 are floats
    signed: bool
    group_size: int
    rank: int  # of what is added to it; 0: nothing is
    constants: Mapping[str, tuple[int, int]]  # constant -> (offset, bytes)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StoredWeight:  # JSON, as to_json gives it
        constants = {name: (int(offset), int(size)) for name, (offset, size) in data["constants"].items()}
        return cls(tuple(data["shape"]), data["bits"], data["signed"], data["group_size"], data["rank"], constants)

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def _parts(name: str, weight: PackedTensor) -> dict[str, FloatArray]:
    """The constants of a packed tensor."""
    parts: dict[str, FloatArray] = {name: weight.data, f"{name}/scale": weight.scale}
    if weight.zero_point is not None:
        parts[f"{name}/zero_point"] = weight.zero_point
    if weight.low_rank is not None:
        parts |= _parts(f"{name}/lora_a", weight.low_rank.a) | _parts(f"{name}/lora_b", weight.low_rank.b)
    return parts


class WeightStore(Mapping[str, Weight]):
    """A file that grows by whole weights. `end` is where it ends; what comes after that at opening is cut off."""

    def __init__(self, path: Path, records: Mapping[str, StoredWeight], end: int) -> None:
        self.path = path
        self.records = dict(records)
        self.end = end
        self._file = path.open("r+b" if end and path.exists() else "w+b", buffering=0)
        self._file.truncate(end)
        self._file.seek(end)
        self._map: np.memmap[Any, np.dtype[np.uint8]] | None = None  # of the file as long as it was
        self._digest = hashlib.sha256()
        self._hashed = 0  # bytes in the digest

    def put(self, name: str, weight: Weight) -> None:
        """Append one weight. float32 and float16 arrays, or packed tensors. Raises OSError."""
        parts: dict[str, FloatArray]
        if isinstance(weight, PackedTensor):
            parts = _parts(name, weight)
            rank = 0 if weight.low_rank is None else weight.low_rank.a.shape[0]
            kind = (weight.bits, weight.signed, weight.group_size, rank)
        else:
            parts, kind = {name: weight}, (8 * weight.dtype.itemsize, False, 0, 0)
        constants = {part: (self.append(array), array.nbytes) for part, array in parts.items()}
        self.records[name] = StoredWeight(tuple(weight.shape), *kind, constants)

    def append(self, array: npt.NDArray[Any]) -> int:  # of any dtype
        """Write the bytes of an array at the next aligned place and return that offset. Raises OSError."""
        offset = -(-self.end // ALIGNMENT) * ALIGNMENT
        self._write(bytes(offset - self.end))
        self._write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self.end = offset + array.nbytes
        return offset

    def hash_written(self) -> str:
        """Hex sha256 of the file as far as it is written; what was hashed before is not hashed again."""
        if self._hashed < self.end:
            self._digest.update(self._mapped()[self._hashed : self.end].data)
            self._hashed = self.end
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Return when everything written is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file; views into it must be gone."""
        self._map = None
        self._file.close()

    @property
    def constants(self) -> dict[str, tuple[int, int]]:
        """All constants of all weights: name -> (offset, bytes)."""
        return {name: place for record in self.records.values() for name, place in record.constants.items()}

    def __getitem__(self, name: str) -> Weight:
        record = self.records[name]
        mapped = self._mapped()
        parts = {
            part.removeprefix(name): mapped[offset : offset + size] for part, (offset, size) in record.constants.items()
        }
        if record.bits >= 16:
            return parts[""].view(np.float16 if record.bits == 16 else np.float32).reshape(record.shape)

        def packed(part: str, n: int, k: int, bits: int, group_size: int) -> PackedTensor:
            return PackedTensor(
                shape=(n, k),
                bits=bits,
                signed=record.signed,
                group_size=group_size,
                data=parts[part],
                scale=parts[f"{part}/scale"].view(np.float16).reshape(n, k // group_size),
                zero_point=parts.get(f"{part}/zero_point"),
            )

        (n, k), rank = record.shape, record.rank
        weight = packed("", n, k, record.bits, record.group_size)
        if not rank:
            return weight
        return replace(weight, low_rank=LowRank(packed("/lora_a", rank, k, 8, k), packed("/lora_b", n, rank, 8, rank)))

    def __iter__(self) -> Iterator[str]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def _mapped(self) -> np.memmap[Any, np.dtype[np.uint8]]:
        if self._map is None or self._map.size < self.end:
            self._map = np.memmap(self.path, np.uint8, "r", shape=(self.end,))
        return self._map

    def _write(self, data: bytes | memoryview) -> None:
        written = 0
        while written < len(data):  # one call writes 2 GB at most
            written += self._file.write(data[written:]) or 0
