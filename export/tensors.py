"""What a weight is between compression and graph.

A weight is either a numpy float array in the dtype it is stored in, or a `PackedTensor`: the integers, scales and zero
points that were chosen, in the byte layout of OpenVINO's u4/i4/u8/i8 constants, perhaps with the product of two narrow
matrices added to them. Knows nothing about graphs or about how the numbers were chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[Any]  # float32, float16 or ml_dtypes.bfloat16
Float32Array: TypeAlias = npt.NDArray[np.float32]
Bytes: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """Integers of a (N, K) matrix in groups of `group_size` along K.

    Element (n, k) means `(q[n, k] - zero_point[n, k // group_size]) * scale[n, k // group_size]`. Symmetric tensors
    store no zero points: theirs is 0 where integers are signed, as in OpenVINO, else the middle of the range.
    Values of 4 and of 2 bits are stored two and four to a byte, the first in its lowest bits.
    """

    shape: tuple[int, int]  # (N, K)
    bits: int  # 2, 4 or 8
    signed: bool
    group_size: int  # K if a whole row is one group
    data: Bytes  # (N * K * bits / 8,)
    scale: npt.NDArray[np.float16]  # (N, K / group_size)
    zero_point: Bytes | None  # (ceil(N * K / group_size * bits / 8),), packed like data
    low_rank: LowRank | None = None  # added to what the integers mean

    @property
    def middle(self) -> int:
        """The zero point of a symmetric tensor."""
        return 0 if self.signed else 1 << (self.bits - 1)

    @property
    def groups(self) -> int:
        """Number of groups in one row."""
        return self.shape[1] // self.group_size

    @property
    def nbytes(self) -> int:
        """Bytes of integers, scales and zero points together."""
        own = self.data.nbytes + self.scale.nbytes + (0 if self.zero_point is None else self.zero_point.nbytes)
        return own if self.low_rank is None else own + self.low_rank.a.nbytes + self.low_rank.b.nbytes


@dataclass(frozen=True, slots=True)
class LowRank:
    """b a, a matrix (N, K) of rank R. Both have 8 bits, one scale a row, and the signedness of what they add to."""

    a: PackedTensor  # (R, K)
    b: PackedTensor  # (N, R)


Weight: TypeAlias = FloatArray | PackedTensor

BFLOAT16 = "bfloat16"  # name of the dtype, which ml_dtypes adds: nothing here needs more of that package


def to_float32(values: FloatArray) -> Float32Array:
    """The same numbers in float32, exactly; a float32 array is returned itself, not a copy."""
    if values.dtype == np.float32:
        return values
    wide = np.empty(values.shape, np.float32)
    write_float32(values, wide)
    return wide


def write_float32(values: FloatArray, out: Float32Array) -> None:
    """Write the same numbers into a given array."""
    if values.dtype.name == BFLOAT16:  # the upper half of float32; a shift takes a third of the time of a conversion
        np.left_shift(values.view(np.uint16), 16, dtype=np.uint32, out=out.view(np.uint32))
    else:
        out[...] = values


def unpack(packed: Bytes, count: int, bits: int, *, signed: bool) -> npt.NDArray[np.int16]:
    """The first `count` integers that these bytes hold, as int16 of shape (count,)."""
    packed = packed[: -(-count * bits // 8)]
    if bits == 8:
        return (packed.view(np.int8) if signed else packed).astype(np.int16)[:count]
    in_byte = 8 // bits
    values = np.empty((packed.size, in_byte), np.int16)
    for place in range(in_byte):
        values[:, place] = packed >> place * bits & (1 << bits) - 1
    if signed:
        values -= (values >> bits - 1) << bits
    return values.reshape(-1)[:count]


def rows_of(weight: Weight, start: int, stop: int) -> Float32Array:
    """Some rows of a matrix in float32, however it is stored."""
    if not isinstance(weight, PackedTensor):
        return to_float32(weight[start:stop])
    stop = min(stop, weight.shape[0])
    values = integers_of(weight, start, stop)
    values *= weight.scale[start:stop, :, None].astype(np.float32)
    values = values.reshape(stop - start, weight.shape[1])
    if weight.low_rank is not None:
        values += rows_of(weight.low_rank.b, start, stop) @ rows_of(weight.low_rank.a, 0, weight.shape[1])
    return values


def integers_of(weight: PackedTensor, start: int, stop: int) -> Float32Array:
    """Integers of some rows less their zero points, (rows, groups, group_size), in float32."""
    k, groups = weight.shape[1], weight.groups
    stored = weight.data[start * k * weight.bits // 8 : stop * k * weight.bits // 8]
    if weight.bits == 8:
        values = (stored.view(np.int8) if weight.signed else stored).astype(np.float32)
    else:
        values = _IN_BYTES[weight.bits, weight.signed][stored].view(np.float32)
    values = values.reshape(stop - start, groups, -1)
    if weight.zero_point is not None:
        first, count = start * groups, (stop - start) * groups
        whole = first * weight.bits // 8  # bytes before the one that the first value begins in
        skipped = first - whole * 8 // weight.bits
        zero = unpack(weight.zero_point[whole:], skipped + count, weight.bits, signed=False)[skipped:]
        values -= zero.reshape(-1, groups, 1).astype(np.float32)
    elif weight.middle:
        values -= weight.middle
    return values


def take_rows(weight: Weight, rows: npt.NDArray[np.int64]) -> Weight:
    """Some rows of a matrix as a matrix of their own, stored in the same way."""
    if not isinstance(weight, PackedTensor):
        return np.ascontiguousarray(weight[rows])
    n, k = weight.shape
    data = weight.data.reshape(n, -1)[rows].reshape(-1)
    zero_point = weight.zero_point
    if zero_point is not None:
        zero = unpack(zero_point, n * weight.groups, weight.bits, signed=False).reshape(n, -1)[rows]
        zero_point = pack(zero.reshape(-1), weight.bits)
    assert weight.low_rank is None, "only embedding and head lose rows, and they have no low rank"
    return replace(weight, shape=(len(rows), k), data=data, scale=weight.scale[rows], zero_point=zero_point)


def as_unsigned(weight: PackedTensor) -> PackedTensor:
    """The same weights with unsigned integers, as a copy: the highest bit of signed ones is flipped."""
    if not weight.signed:
        return weight
    more = weight.low_rank
    return replace(
        weight,
        signed=False,
        data=weight.data ^ _HIGHEST_BITS[weight.bits],
        low_rank=None if more is None else LowRank(as_unsigned(more.a), as_unsigned(more.b)),
    )


def pack(values: npt.NDArray[Any], bits: int) -> Bytes:  # whole numbers of any dtype
    """Integers of (..., n) as bytes along the last axis, (..., ceil(n bits / 8)), the first in a byte's lowest bits."""
    whole = values.astype(np.uint8)
    if bits == 8:
        return whole
    whole &= np.uint8((1 << bits) - 1)
    in_byte = 8 // bits
    if missing := -whole.shape[-1] % in_byte:
        whole = np.concatenate([whole, np.zeros_like(whole[..., :missing])], axis=-1)
    packed: Bytes = whole[..., 0::in_byte].copy()
    for place in range(1, in_byte):
        packed |= whole[..., place::in_byte] << np.uint8(place * bits)
    return packed


def _in_bytes(bits: int, signed: bool) -> npt.NDArray[Any]:
    """For each byte all values in it, float32 in one value of 8 or 16 bytes: unpacking is then one table lookup."""
    values = unpack(np.arange(256, dtype=np.uint8), 256 * 8 // bits, bits, signed=signed).astype(np.float32)
    return values.view(np.complex64 if bits == 4 else np.complex128)


_IN_BYTES = {(bits, signed): _in_bytes(bits, signed) for bits in (2, 4) for signed in (False, True)}
_HIGHEST_BITS = {2: np.uint8(0xAA), 4: np.uint8(0x88), 8: np.uint8(0x80)}
