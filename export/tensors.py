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
    4-bit values are stored two to a byte, low nibble first.
    """

    shape: tuple[int, int]  # (N, K)
    bits: int  # 4 or 8
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
    nibbles = np.empty(packed.size * 2, np.int16)
    nibbles[0::2] = packed & 0xF
    nibbles[1::2] = packed >> 4
    if signed:
        nibbles = np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int16)
    return nibbles[:count]


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
    if weight.bits == 4:
        values = _PAIRS[weight.signed][stored].view(np.float32)
    else:
        values = (stored.view(np.int8) if weight.signed else stored).astype(np.float32)
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
        data=weight.data ^ np.uint8(0x88 if weight.bits == 4 else 0x80),
        low_rank=None if more is None else LowRank(as_unsigned(more.a), as_unsigned(more.b)),
    )


def pack(values: npt.NDArray[Any], bits: int) -> Bytes:  # whole numbers of any dtype
    """Integers of (..., n) as bytes along the last axis: (..., n) for 8 bits, (..., ceil(n / 2)) for 4, low first."""
    whole = values.astype(np.uint8)
    if bits == 8:
        return whole
    whole &= 0xF
    if whole.shape[-1] % 2:
        whole = np.concatenate([whole, np.zeros_like(whole[..., :1])], axis=-1)
    packed: Bytes = whole[..., 0::2] | whole[..., 1::2] << np.uint8(4)
    return packed


def _pairs(signed: bool) -> npt.NDArray[np.complex64]:
    """For each byte both nibbles, as two float32 in one value of 8 bytes: unpacking is then one table lookup."""
    nibbles = unpack(np.arange(256, dtype=np.uint8), 512, 4, signed=signed)
    return nibbles.astype(np.float32).view(np.complex64)


_PAIRS = {signed: _pairs(signed) for signed in (False, True)}
