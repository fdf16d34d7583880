"""Arrays from an .npz file that is not trusted: neither an array's unpacked size, nor its type or shape.

In: an open archive, a name, and what the array may be at most. Out: the array. Knows nothing about what it means.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import numpy.lib.format
import numpy.typing as npt

_HEADER_BYTES = 1000  # most bytes of an array's header in the file


class UnexpectedArray(ValueError):
    """What is wrong with an array, as the second half of a sentence that begins with the file's name."""


def read_array(
    archive: zipfile.ZipFile, name: str, kind: type[np.generic], most: int
) -> npt.NDArray[Any]:  # Any: of the given kind
    """Return one array of this type with at most `most` values; no more than that is unpacked.

    Raises UnexpectedArray, and a dozen kinds of errors from zipfile, zlib and numpy for bytes that are not an archive.
    """
    limit = _HEADER_BYTES + most * np.dtype(kind).itemsize
    with archive.open(f"{name}.npy") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnexpectedArray(f"holds more than {most} values of {name}")
    stream = io.BytesIO(content)
    version = numpy.lib.format.read_magic(stream)
    if version != (1, 0):
        raise UnexpectedArray(f"holds {name} in version {version[0]}.{version[1]} of numpy's format, expected 1.0")
    shape, fortran_order, dtype = numpy.lib.format.read_array_header_1_0(stream, max_header_size=_HEADER_BYTES)
    if dtype != np.dtype(kind) or min(shape, default=0) < 0:  # a negative size means "the rest" to reshape
        raise UnexpectedArray(f"holds {name} as {dtype} {list(shape)}, expected {np.dtype(kind)}")
    return np.frombuffer(content[stream.tell() :], kind).reshape(shape, order="F" if fortran_order else "C")
