"""Rows of pictures that were computed before: in memory, and in files of the user's cache folder.

In: a picture's key, rows. Out: the rows with this key, if they are kept. Knows nothing about towers or pixels.

A file's name is the sha256 of the key. Little-endian:

    magic, version, number and width of the rows, the key's sha256, and the sha256 of these and the rows
    rows          float32

A damaged file is as good as none, and is written anew; a file of somebody else stays as it is. When all files together
exceed their limit, those that were not used for longest are removed. A folder that cannot be written to is told once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge.runtime.arrays import Hidden
from edge.runtime.atomic import write_atomically
from edge.runtime.cache_folder import cache_folder
from edge.runtime.errors import OutputError
from edge.runtime.files import is_blank, open_file, shown_path
from edge.runtime.notices import notice

FOLDER = "pictures"  # in the user's cache folder
SUFFIX = ".rows"
MEMORY_BYTES = 128 << 20  # of rows that are kept in memory; the latest picture's are in any case
_NAME = re.compile(rf"[0-9a-f]{{64}}\{SUFFIX}")
_MAGIC = b"EDGEROWS"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQ32s")  # magic, version, width, rows, key
_DIGEST = 32  # bytes of sha256
_BEGIN = _HEADER.size + _DIGEST


class KeptRows:
    """Rows by key. Not for several threads at once; other processes may use the same folder."""

    def __init__(self, folder: Path | None, most_bytes: int, memory_bytes: int = MEMORY_BYTES) -> None:
        """folder: None for that in the user's cache folder. most_bytes: of all files; 0 writes and reads none."""
        self._folder, self._most_bytes, self._memory_bytes = folder, most_bytes, memory_bytes
        self._memory: OrderedDict[bytes, Hidden] = OrderedDict()
        self._told = False

    def find(self, key: bytes, shape: tuple[int, int]) -> Hidden | None:
        """Return the rows of a key, which nobody may change; None if they are not kept, or not of this shape."""
        if (rows := self._memory.get(key)) is not None:
            self._memory.move_to_end(key)
            return rows
        if not self._most_bytes:
            return None
        with contextlib.suppress(OutputError, OSError):
            path = self._path(key)
            if (rows := _read(path, key, shape)) is not None:
                self._remember(key, rows)
                with contextlib.suppress(OSError):
                    os.utime(path)  # used now
                return rows
        return None

    def keep(self, key: bytes, rows: Hidden) -> None:
        """Keep rows, which nobody changes from now on. Where no file can be written, they are kept in memory alone."""
        self._remember(key, rows)
        if not self._most_bytes:
            return
        try:
            self._write(key, rows)
        except (OutputError, OSError) as error:
            if not self._told:
                notice(f"what a picture became is not kept on the disk: {error}")
            self._told = True

    def clear(self) -> None:
        """Forget what is in memory."""
        self._memory.clear()

    def _remember(self, key: bytes, rows: Hidden) -> None:
        rows.flags.writeable = False
        self._memory[key] = rows
        self._memory.move_to_end(key)
        while len(self._memory) > 1 and sum(each.nbytes for each in self._memory.values()) > self._memory_bytes:
            self._memory.popitem(last=False)

    def _write(self, key: bytes, rows: Hidden) -> None:
        path, content = self._path(key), _encoded(key, rows)
        size = sum(len(part) for part in content)
        if size > self._most_bytes:
            raise OutputError(f"it has {size:,} bytes, and kept_pictures_bytes is {self._most_bytes:,}")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and not _is_ours(path):
            raise OutputError(f"{shown_path(path)} exists and is not ours; remove it, or name another folder")
        write_atomically(path, content)
        self._remove_oldest(path)

    def _remove_oldest(self, but: Path) -> None:
        """Remove files that were not used for longest, until the rest is within the limit; never the one just written.

        Another process may remove the same ones at the same time, which harms neither.
        """
        found = sorted(_files(but.parent), key=lambda file: (file[0] == but, file[1].st_mtime_ns))
        total = sum(status.st_size for _, status in found)
        for path, status in found[:-1]:
            if total <= self._most_bytes:
                break
            with contextlib.suppress(OSError):
                if _is_ours(path):
                    path.unlink()
            total -= status.st_size

    def _path(self, key: bytes) -> Path:
        """Raises OutputError for a user without a home."""
        return (self._folder or cache_folder() / FOLDER) / f"{hashlib.sha256(key).hexdigest()}{SUFFIX}"


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the files with names like ours."""
    for path in folder.iterdir():
        if _NAME.fullmatch(path.name):
            with contextlib.suppress(OSError):
                yield path, path.lstat()


def _is_ours(path: Path) -> bool:
    """Whether a file is one of ours, or what a power cut left of one. Raises OSError."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        found = file.read(len(_MAGIC))
    return found == _MAGIC or is_blank(path)


def _encoded(key: bytes, rows: Hidden) -> list[bytes | memoryview]:
    content = np.ascontiguousarray(rows, "<f4").data.cast("B")
    head = _HEADER.pack(_MAGIC, _VERSION, rows.shape[1], rows.shape[0], hashlib.sha256(key).digest())
    digest = hashlib.sha256(head)
    digest.update(content)
    return [head, digest.digest(), content]


def _read(path: Path, key: bytes, shape: tuple[int, int]) -> Hidden | None:
    """Return the rows of a file; None for one that is not whole, or holds something else. Raises OSError."""
    if not path.exists():
        return None
    size = 4 * shape[0] * shape[1]
    with open_file(path, OutputError, "remove it") as file:
        if os.fstat(file.fileno()).st_size != _BEGIN + size:
            return None
        head, digest = file.read(_HEADER.size), file.read(_DIGEST)
        content = file.read(size)
        if len(content) != size:
            return None
    if head != _HEADER.pack(_MAGIC, _VERSION, shape[1], shape[0], hashlib.sha256(key).digest()):
        return None
    found = hashlib.sha256(head)
    found.update(content)
    if found.digest() != digest:
        return None
    return np.frombuffer(content, "<f4").astype(np.float32, copy=False).reshape(shape)
