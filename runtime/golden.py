"""Golden logits out of a bundle: the token ids that export ran through the float and the compressed model.

In: the bytes of golden.npz and the model's vocabulary. Out: ids and both logits, or a BundleError. Nothing in the file
is believed before it is compared: not how large an array unpacks to, not its type, not its shape.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.lib.format
import numpy.typing as npt

from edge.runtime.arrays import Logits
from edge.runtime.errors import EXPORT_AGAIN, BundleError, shown, telling_line

MAX_TOKENS = 4096  # of a golden text; export takes a few
MAX_ROWS = 64  # of logits
_HEADER_BYTES = 1000  # at most, of an array in the file


@dataclass(frozen=True)
class GoldenLogits:
    """What a bundle carries to be checked by on any machine."""

    ids: npt.NDArray[np.int64]  # (T,)
    float_logits: Logits  # (rows, vocab), of the checkpoint in float32
    logits: Logits  # (rows, vocab), of the compressed weights in float32


def read_golden(raw: bytes, vocab_size: int) -> GoldenLogits:
    """Raises BundleError for anything else than ids and finite logits of this vocabulary."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            ids = _array(archive, "ids", np.int64, MAX_TOKENS)
            logits, float_logits = (
                _array(archive, name, np.float32, MAX_ROWS * vocab_size) for name in ("logits", "float_logits")
            )
    except BundleError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for bytes that are no archive of arrays
        raise _refusal(f"does not read as arrays ({shown(telling_line(error))})") from error
    if ids.ndim != 1 or ids.size == 0 or ids.min() < 0 or ids.max() >= vocab_size:
        raise _refusal(f"holds no ids below {vocab_size}")
    for each in (logits, float_logits):
        if each.shape != logits.shape or each.ndim != 2 or not 0 < len(each) <= len(ids) or each.shape[1] != vocab_size:
            raise _refusal(f"holds logits {list(each.shape)}, expected at most {len(ids)} rows of {vocab_size}")
        if not np.isfinite(each).all() or not each.any():
            raise _refusal("holds logits that are no finite numbers, or all zero")
    return GoldenLogits(ids, float_logits, logits)


def _array(archive: zipfile.ZipFile, name: str, kind: type[np.generic], most: int) -> npt.NDArray[Any]:
    """One array of this type with at most so many values: no more is unpacked."""
    limit = _HEADER_BYTES + most * np.dtype(kind).itemsize
    with archive.open(f"{name}.npy") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise _refusal(f"holds more than {most} values of {name}")
    stream = io.BytesIO(content)
    version = numpy.lib.format.read_magic(stream)
    if version != (1, 0):
        raise _refusal(f"holds {name} in version {version[0]}.{version[1]} of numpy's format, expected 1.0")
    shape, fortran_order, dtype = numpy.lib.format.read_array_header_1_0(stream, max_header_size=_HEADER_BYTES)
    if dtype != np.dtype(kind) or min(shape, default=0) < 0:  # which reshape would take for "what is left"
        raise _refusal(f"holds {name} as {dtype} {list(shape)}, expected {np.dtype(kind)}")
    return np.frombuffer(content[stream.tell() :], kind).reshape(shape, order="F" if fortran_order else "C")


def _refusal(problem: str) -> BundleError:
    return BundleError(f"golden.npz {problem}; {EXPORT_AGAIN}")
