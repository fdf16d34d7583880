"""Files that are read through memory maps, so that weights are in memory only while they are used.

In: places in files. Out: views of their bytes. Knows nothing about formats.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt


class MappedFiles:
    """Each file is mapped when it is first read."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def view(self, file: Path, start: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """These bytes; nothing is read before they are looked at."""
        return np.frombuffer(self._map(file), np.uint8, nbytes, start) if nbytes else np.empty(0, np.uint8)

    def prefetch(self, file: Path, start: int, nbytes: int) -> None:
        """Have the system begin to read these bytes: page faults alone read ahead too little."""
        if hasattr(mmap, "MADV_WILLNEED"):  # not on Windows
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            self._map(file).madvise(mmap.MADV_WILLNEED, page, start + nbytes - page)

    def release(self) -> None:
        """Unmap what was read; views stay valid and read the files again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with file.open("rb") as stream:
                self._maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[file]
