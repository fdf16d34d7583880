"""Golden logits in a bundle: token ids, and the logits that the float and the compressed model gave at export.

In: the bytes of golden.npz, and the size of the vocabulary. Out: ids and both logits, or a BundleError. Nothing in the
file is trusted before it is checked: neither an array's unpacked size, nor its type or shape.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.runtime.array_files import UnexpectedArray, read_array
from edge.runtime.arrays import Logits
from edge.runtime.errors import EXPORT_AGAIN, BundleError, shown, telling_line

MAX_TOKENS = 4096  # of a golden text; export uses a few
MAX_ROWS = 64  # of logits


@dataclass(frozen=True)
class GoldenLogits:
    """What any machine can check a bundle against."""

    ids: npt.NDArray[np.int64]  # (T,)
    float_logits: Logits  # (rows, vocab), of the checkpoint in float32
    logits: Logits  # (rows, vocab), of the compressed weights in float32


def read_golden(raw: bytes, vocab_size: int) -> GoldenLogits:
    """Read ids and finite logits of this vocabulary. Raises BundleError for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            ids = read_array(archive, "ids", np.int64, MAX_TOKENS)
            logits, float_logits = (
                read_array(archive, name, np.float32, MAX_ROWS * vocab_size) for name in ("logits", "float_logits")
            )
    except UnexpectedArray as error:
        raise _refusal(str(error)) from error
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for invalid bytes
        raise _refusal(f"cannot be read as arrays ({shown(telling_line(error))})") from error
    if ids.ndim != 1 or ids.size == 0 or ids.min() < 0 or ids.max() >= vocab_size:
        raise _refusal(f"holds no ids below {vocab_size}")
    for each in (logits, float_logits):
        if each.shape != logits.shape or each.ndim != 2 or not 0 < len(each) <= len(ids) or each.shape[1] != vocab_size:
            raise _refusal(f"holds logits {list(each.shape)}, expected at most {len(ids)} rows of {vocab_size}")
        if not np.isfinite(each).all() or not each.any():
            raise _refusal("holds logits that are not finite, or all zero")
    return GoldenLogits(ids, float_logits, logits)


def _refusal(problem: str) -> BundleError:
    return BundleError(f"golden.npz {problem}; {EXPORT_AGAIN}")
