"""Files of a checkpoint, read so that weights are in memory only while they are used.

In: places in files. Out: their bytes, or the sha256 of them. Knows nothing about formats.

Touching a memory-mapped file that has shrunk ends the process with SIGBUS. So all but the largest tensors are read,
which fails with an error instead. Embeddings are mapped nevertheless: read, they would take a gigabyte that the system
cannot drop. Whether a file still has its bytes is checked each time before some of them are handed out.

Fresh memory is what reading costs most: the system clears it, page by page. So what is read goes into memory that the
tensors before it are done with, and the system's own copy of a file's bytes is given back for the next ones, unless it
was there before this process asked for it.
"""

from __future__ import annotations

import contextlib
import hashlib
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
LEAST_KEPT = 1 << 20  # bytes: memory of smaller tensors costs nothing
KEPT = 2  # pieces of memory that are used again: two threads read
HASHED_BYTES = 1 << 20  # that are read together where they are only hashed: they stay in a core's cache


class _Memory:
    """Bytes that an array is made of. The array, and every view of it, keeps this object alive and not the bytes."""

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        self.__array_interface__ = memory.__array_interface__


class MappedFiles:
    """Each file is opened when it is first read, and stays that file even if another one takes its name."""

    def __init__(self) -> None:
        self._opened: dict[Path, int] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = threading.Lock()
        self._free: list[npt.NDArray[np.uint8]] = []  # memory that nobody reads any more
        self._brought: set[tuple[Path, int, int]] = set()  # places that were on the disk alone

    def view(self, file: Path, start: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """These bytes, which must not be written to. Raises TensorError when the file no longer has them."""
        if not nbytes:
            return np.empty(0, np.uint8)
        descriptor = self._checked(file, start, nbytes)
        if nbytes > READ_BYTES:
            return np.frombuffer(self._map(file), np.uint8, nbytes, start)
        found = self._memory(nbytes)
        self._read_all(file, descriptor, found, start)
        found.flags.writeable = False
        return found

    def sha256(self, file: Path, start: int, nbytes: int) -> str:
        """Hex digest of these bytes. Raises TensorError when the file no longer has them."""
        digest = hashlib.sha256()
        if nbytes:
            descriptor = self._checked(file, start, nbytes)
            memory = np.empty(min(nbytes, HASHED_BYTES), np.uint8)
            for done in range(0, nbytes, HASHED_BYTES):
                part = memory[: nbytes - done]
                self._read_all(file, descriptor, part, start + done)
                digest.update(part.data)
        return digest.hexdigest()

    def prefetch(self, file: Path, start: int, nbytes: int) -> None:
        """Ask the system to begin reading these bytes."""
        if nbytes and hasattr(os, "posix_fadvise"):  # on Linux
            descriptor = self._open(file)
            if not _in_memory(descriptor, start + nbytes // 2):
                self._brought.add((file, start, nbytes))
            os.posix_fadvise(descriptor, start, nbytes, os.POSIX_FADV_WILLNEED)

    def done_with(self, file: Path, start: int, nbytes: int) -> None:
        """These bytes are not read again: let the system drop them, if it has them for this process alone."""
        place = (file, start, nbytes)
        if place in self._brought:
            self._brought.remove(place)
            os.posix_fadvise(self._open(file), start, nbytes, os.POSIX_FADV_DONTNEED)

    def release(self) -> None:
        """Unmap what was read; views stay valid and read the files again."""
        for mapped in self._maps.values():
            if sys.platform == "win32":  # there, unlocking what is not locked drops it from the working set
                pages.kernel32().VirtualUnlock(np.frombuffer(mapped, np.uint8).ctypes.data, len(mapped))
            elif hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def _checked(self, file: Path, start: int, nbytes: int) -> int:
        """The open file, which has these bytes."""
        descriptor = self._open(file)
        if (size := os.fstat(descriptor).st_size) < start + nbytes:
            raise _shrunk(file, size)
        return descriptor

    def _memory(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """So many bytes to read into, which are used again when the array and all views of it are gone."""
        if nbytes < LEAST_KEPT:
            return np.empty(nbytes, np.uint8)
        free = self._free  # others may add to its end meanwhile
        with self._lock:
            fitting = [place for place in range(len(free)) if len(free[place]) >= nbytes]
            if fitting:
                memory = free.pop(min(fitting, key=lambda place: len(free[place])))
            else:
                del free[:1]  # too small, and in the place of this one
                memory = np.empty(nbytes, np.uint8)
        owner = _Memory(memory)
        weakref.finalize(owner, _keep, free, memory).atexit = False
        return np.asarray(owner)[:nbytes]

    def _read_all(self, file: Path, descriptor: int, memory: npt.NDArray[np.uint8], start: int) -> None:
        done = 0
        while done < len(memory):
            if not (count := self._read_into(descriptor, memory[done:].data, start + done)):
                raise _shrunk(file, start + done)
            done += count

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


def _keep(free: list[npt.NDArray[np.uint8]], memory: npt.NDArray[np.uint8]) -> None:
    """Runs when the last view of this memory is gone, in whichever thread that is."""
    if len(free) < KEPT:
        free.append(memory)


def _in_memory(descriptor: int, place: int) -> bool:
    """Whether the system has this byte of a file in memory; True where it does not say."""
    if not hasattr(os, "RWF_NOWAIT"):
        return True
    with contextlib.suppress(OSError):  # a file system that cannot do it
        try:
            os.preadv(descriptor, [bytearray(1)], place, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
    return True


def _shrunk(file: Path, size: int) -> TensorError:
    return TensorError(
        f"{file} ends at byte {size:,} now, and was longer when it was opened; download or copy it again, then export"
    )
