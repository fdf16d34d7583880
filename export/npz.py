"""Arrays in an .npz file whose bytes follow from the arrays alone.

In: an open archive, a name and an array; later, the archive and the name. Out: the entry that numpy would write, but
without the time of writing; later, the array. Nothing is allocated beyond what the file holds. Knows nothing about what
the arrays mean.
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

# What zipfile, numpy and wrong types raise for a file that was altered.
DAMAGE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, OverflowError, MemoryError,
    SyntaxError, tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


def put_array(
    archive: zipfile.ZipFile,
    name: str,
    array: npt.NDArray[Any],  # of any dtype except object
    *,
    compressed: bool = False,
) -> None:
    """Add an array that `np.load` finds under this name. Nothing but the array is held in memory."""
    entry = zipfile.ZipInfo(f"{name}.npy")
    entry.compress_type = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    entry.file_size = array.nbytes  # roughly, for now: several GB need another form of entry
    with archive.open(entry, "w") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def get_array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:  # of any dtype except object
    """An array that `put_array` or `np.savez` wrote without compression.

    Raises ValueError for anything else, and what `zipfile` raises for a damaged archive.
    """
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ValueError(f"{name} is compressed")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"{name} is an array in format version {version}")
        wanted = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or min(shape, default=0) < 0 or wanted > entry.file_size:
            raise ValueError(f"{name} claims to be an array of {dtype} {shape}, and has {entry.file_size:,} bytes")
        content = file.read()
    if len(content) != wanted:
        raise ValueError(f"{name} claims {wanted:,} bytes and has {len(content):,}")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
