"""A span of memory that the system charges for only as far as it is used.

In: a size. Out: its addresses as a buffer; parts of it are taken before they are used, and given back. Knows nothing
about blocks and tokens.

Linux and macOS take a page when it is first written to, so that taking it is nothing to do. Windows counts all memory
that a process could write to against what the machine has (its commit), whether it is ever used or not: a pool of 2 GiB
would be gone at once, for other programs too. So the addresses are only reserved there, and pages are committed as
blocks are handed out. A mapped temporary file would do without that; but it has conversations written to a disk, and
ends the process when the disk is full.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import weakref
from typing import Any, Protocol

CAN_ADVISE = hasattr(mmap, "MADV_NOHUGEPAGE")  # on Linux
RESERVES = sys.platform == "win32"

_COMMIT, _RESERVE, _DECOMMIT, _RELEASE = 0x1000, 0x2000, 0x4000, 0x8000
_NO_ACCESS, _READ_WRITE = 0x01, 0x04


class Pages(Protocol):
    """Memory whose pages are taken and given back."""

    @property
    def buffer(self) -> Any:  # Any: what numpy.frombuffer takes, which has no type
        """All addresses. It, and what is made of it, keeps them valid."""

    def take(self, start: int, stop: int) -> None:
        """Make the bytes of a range usable. Raises OSError if the system has no memory left."""

    def give_back(self, start: int, stop: int) -> None:
        """Give back the whole pages within a range, losing their content. A part of a page may hold other data."""


def open_pages(size: int) -> Pages:
    """Return untouched memory. Raises OSError, OverflowError or MemoryError if the system refuses that many bytes."""
    return ReservedPages(size) if RESERVES else MappedPages(size)


class MappedPages:
    """Memory whose pages are taken by writing to them: private, and without huge pages.

    numpy asks for huge pages, and the first token alone would take one per head and layer: 0.3 GB with 9B shapes.
    mmap's default is shared memory, whose pages are taken by reading them, too.
    """

    def __init__(self, size: int) -> None:
        if CAN_ADVISE:
            self.buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self.buffer.madvise(mmap.MADV_NOHUGEPAGE)
        else:
            self.buffer = mmap.mmap(-1, size)

    def take(self, start: int, stop: int) -> None:
        """Do nothing: writing takes it."""

    def give_back(self, start: int, stop: int) -> None:
        start, stop = _whole_pages(start, stop)
        if CAN_ADVISE and start < stop:
            self.buffer.madvise(mmap.MADV_DONTNEED, start, stop - start)


class ReservedPages:
    """Addresses of Windows, parts of which are memory. Touching any other part ends the process."""

    def __init__(self, size: int) -> None:
        self._kernel = kernel32()
        if size >= 1 << 63:
            raise OverflowError("more bytes than addresses")
        self._address = self._got(self._kernel.VirtualAlloc(None, size, _RESERVE, _NO_ACCESS))
        self.buffer = (ctypes.c_ubyte * size).from_address(self._address)
        free = weakref.finalize(self.buffer, self._kernel.VirtualFree, self._address, 0, _RELEASE)
        free.atexit = False  # a thread may still compute in it; the process frees it at its end

    def take(self, start: int, stop: int) -> None:
        if start < stop:  # every page with a byte of the range, those that are memory already included
            self._got(self._kernel.VirtualAlloc(self._address + start, stop - start, _COMMIT, _READ_WRITE))

    def give_back(self, start: int, stop: int) -> None:
        start, stop = _whole_pages(start, stop)
        if start < stop:
            self._kernel.VirtualFree(self._address + start, stop - start, _DECOMMIT)

    def _got(self, address: int | None) -> int:
        if not address:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return address


def kernel32() -> Any:  # Any: a library, whose functions have no types
    """Return the functions of Windows that reserve, commit and free memory, and drop pages that are in files."""
    if sys.platform != "win32":
        raise AssertionError("no other system reserves memory this way")
    library = ctypes.WinDLL("kernel32")
    library.VirtualAlloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_uint32]
    library.VirtualAlloc.restype = ctypes.c_void_p
    library.VirtualFree.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32]
    library.VirtualFree.restype = ctypes.c_int
    library.VirtualUnlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.VirtualUnlock.restype = ctypes.c_int
    return library


def _whole_pages(start: int, stop: int) -> tuple[int, int]:
    return -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
