"""Arrays in an .npz file whose bytes follow from the arrays alone.

In: an open archive, a name and an array. Out: the entry that numpy would write, but without the time of writing. Knows
nothing about what the arrays mean.
"""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt


def put_array(
    archive: zipfile.ZipFile,
    name: str,
    array: npt.NDArray[Any],  # of any dtype, but of no objects
    *,
    compressed: bool = False,
) -> None:
    """Add an array, as `np.load` finds it under its name. Nothing but the array is held in memory."""
    entry = zipfile.ZipInfo(f"{name}.npy")
    entry.compress_type = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    entry.file_size = array.nbytes  # about, for now: several GB need an entry of another form
    with archive.open(entry, "w") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
