"""The calls of Windows that reserve, commit and free memory, carried out by those of Linux.

In: what `edge.runtime.kv.pages` asks kernel32 for. Out: addresses. As on Windows, touching a page that is not committed
ends the process, committing fails at a limit, and freeing a part of a page frees all of it. Knows nothing about pools.
"""

from __future__ import annotations

import ctypes
import mmap

from edge.runtime.kv import memory, pages

COMMIT, RESERVE, DECOMMIT, RELEASE = 0x1000, 0x2000, 0x4000, 0x8000
# Of Linux, which are other numbers elsewhere.
_NONE, _READ_WRITE = 0, 3
_PRIVATE, _NO_RESERVE, _DONTNEED = 0x22, 0x4000, 4


class Kernel32:
    """Counts what is reserved and what is committed."""

    def __init__(self, limit: int = 1 << 62) -> None:
        """limit: the most bytes that can be committed."""
        self.limit = limit
        self.reserved: dict[int, int] = {}  # address -> size
        self.committed: set[int] = set()  # numbers of pages
        self.dropped: list[tuple[int, int]] = []  # ranges that were unlocked, which none of ours was locked
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        for name, more in (("mprotect", [ctypes.c_int]), ("madvise", [ctypes.c_int]), ("munmap", [])):
            getattr(self._libc, name).argtypes = [ctypes.c_void_p, ctypes.c_size_t, *more]

    @property
    def committed_bytes(self) -> int:
        return len(self.committed) * mmap.PAGESIZE

    def VirtualAlloc(self, address: int | None, size: int, kind: int, protection: int) -> int | None:
        if kind == RESERVE:
            assert address is None
            assert protection == 1, "nobody may touch it yet"
            found = self._libc.mmap(None, size, _NONE, _PRIVATE | _NO_RESERVE, -1, 0)
            if found == ctypes.c_void_p(-1).value:
                return None
            self.reserved[found] = size
            return int(found)
        assert (kind, protection) == (COMMIT, 4)
        assert address is not None
        self._check_inside(address, size)
        wanted = self._touched(address, size)
        if len(self.committed | wanted) * mmap.PAGESIZE > self.limit:
            return None
        self._call("mprotect", wanted - self.committed, _READ_WRITE)
        self.committed |= wanted
        return address

    def VirtualFree(self, address: int, size: int, kind: int) -> int:
        if kind == RELEASE:
            assert size == 0, "as Windows wants it"
            size = self.reserved.pop(address)
            self.committed -= self._touched(address, size)
            assert self._libc.munmap(address, size) == 0
            return 1
        assert kind == DECOMMIT
        self._check_inside(address, size)
        pages_ = self._touched(address, size) & self.committed
        self._call("madvise", pages_, _DONTNEED)
        self._call("mprotect", pages_, _NONE)
        self.committed -= pages_
        return 1

    def VirtualUnlock(self, address: int, size: int) -> int:
        self.dropped.append((address, size))
        return 0

    def _check_inside(self, address: int, size: int) -> None:
        assert any(start <= address and address + size <= start + all_ for start, all_ in self.reserved.items())

    def _touched(self, address: int, size: int) -> set[int]:
        return set(range(address // mmap.PAGESIZE, (address + size - 1) // mmap.PAGESIZE + 1))

    def _call(self, name: str, numbers: set[int], argument: int) -> None:
        for number in numbers:
            assert getattr(self._libc, name)(number * mmap.PAGESIZE, mmap.PAGESIZE, argument) == 0


def install(limit: int = 1 << 62) -> Kernel32:
    """Make pools of this process reserve memory, for good."""
    kernel = Kernel32(limit)
    pages.kernel32 = lambda: kernel
    pages.RESERVES = memory.TAKEN_LATE = True
    return kernel
