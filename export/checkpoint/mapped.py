"""Files of a checkpoint, read so that weights are in memory only while they are used.

In: places in files. Out: their bytes. Knows nothing about formats.

Touching a memory-mapped file that has shrunk ends the process with SIGBUS. So all but the largest tensors are read,
which fails with an error instead. Embeddings are mapped nevertheless: read, they would take a gigabyte that the system
cannot drop. Whether a file still has its bytes is checked each time before some of them are handed out.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.runtime.errors import TensorError
from edge.runtime.kv import pages

READ_BYTES = 256 << 20  # more is mapped; the largest matrix of a block of GLM-4-9B has 224 MB, an embedding 1.2 GB


class MappedFiles:
    """Each file is opened when it is first read, and stays that file even if another one takes its name."""

    def __init__(self) -> None:
        self._opened: dict[Path, int] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = threading.Lock()

    def view(self, file: Path, start: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """These bytes, which must not be written to. Raises TensorError when the file no longer has them."""
        if not nbytes:
            return np.empty(0, np.uint8)
        descriptor = self._open(file)
        if (size := os.fstat(descriptor).st_size) < start + nbytes:
            raise _shrunk(file, size)
        if nbytes > READ_BYTES:
            return np.frombuffer(self._map(file), np.uint8, nbytes, start)
        found = np.empty(nbytes, np.uint8)
        done = 0
        while done < nbytes:
            if not (count := self._read_into(descriptor, found[done:].data, start + done)):
                raise _shrunk(file, start + done)
            done += count
        found.flags.writeable = False
        return found

    def prefetch(self, file: Path, start: int, nbytes: int) -> None:
        """Ask the system to begin reading these bytes."""
        if hasattr(os, "posix_fadvise"):  # on Linux
            os.posix_fadvise(self._open(file), start, nbytes, os.POSIX_FADV_WILLNEED)

    def release(self) -> None:
        """Unmap what was read; views stay valid and read the files again."""
        for mapped in self._maps.values():
            if sys.platform == "win32":  # there, unlocking what is not locked drops it from the working set
                pages.kernel32().VirtualUnlock(np.frombuffer(mapped, np.uint8).ctypes.data, len(mapped))
            elif hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def _open(self, file: Path) -> int:
        with self._lock:
            if file not in self._opened:
                descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                weakref.finalize(self, os.close, descriptor)
                self._opened[file] = descriptor
            return self._opened[file]

    def _map(self, file: Path) -> mmap.mmap:
        with self._lock:
            if file not in self._maps:
                self._maps[file] = mmap.mmap(self._opened[file], 0, access=mmap.ACCESS_READ)
            return self._maps[file]

    def _read_into(self, descriptor: int, memory: memoryview, start: int) -> int:
        """Read into memory; returns the number of bytes."""
        if hasattr(os, "preadv"):
            return os.preadv(descriptor, [memory], start)
        with self._lock:  # the position in the file is shared
            os.lseek(descriptor, start, os.SEEK_SET)
            data = os.read(descriptor, len(memory))
        memory[: len(data)] = data
        return len(data)


def _shrunk(file: Path, size: int) -> TensorError:
    return TensorError(
        f"{file} ends at byte {size:,} now, and was longer when it was opened; download or copy it again, then export"
    )
