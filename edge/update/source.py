"""Where a release comes from: a folder, or a web server.

In: what a user named. Out: a `Source`, which gives small files whole and large ones in parts, from any byte on. Knows
nothing about what is in them: nothing that it gives is trusted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from edge.runtime.errors import SettingsError, UpdateError, shown
from edge.runtime.files import open_file, read_file, shown_path

PART_BYTES = 1 << 20
_COPY = "copy the signed release again, all of its folder"
_SIGN = f"{_COPY}, or make the bundle there a release with `edge update sign`"


class Source(Protocol):
    """Files of a release, by name."""

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return a small file. Raises UpdateError."""
        ...

    def parts(self, name: str, start: int, size: int) -> Iterator[bytes]:
        """Yield a file of this size from a byte on: all of it and no more, or UpdateError is raised."""
        ...


def open_source(given: str, allowed_hosts: tuple[str, ...] | None = ()) -> Source:
    """Return the source that a path or an URL names. Raises SettingsError.

    allowed_hosts: other hosts that the server may send us on to; None: there are none, nor can any be named.
    """
    url = urlsplit(given)
    if url.scheme in ("http", "https"):
        from edge.update.http_source import HttpSource

        return HttpSource(given, allowed_hosts)
    if url.scheme == "file" and url.netloc in ("", "localhost"):
        return FolderSource(Path(url2pathname(url.path)))
    if "://" in given:
        raise SettingsError(f"source is {shown(given)}, expected a folder, or an URL of http, https or file")
    return FolderSource(Path(given))


class FolderSource:
    """A folder: on a stick, or on a disk that several machines see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return shown_path(self._folder)

    def read(self, name: str, max_bytes: int) -> bytes:
        return read_file(self._folder / name, UpdateError, _SIGN, max_bytes=max_bytes)

    def parts(self, name: str, start: int, size: int) -> Iterator[bytes]:
        path = self._folder / name
        with open_file(path, UpdateError, _COPY) as file:
            there = os.fstat(file.fileno()).st_size
            if there != size:
                raise UpdateError(f"{shown_path(path)} has {there:,} bytes, the manifest says {size:,}; {_COPY}")
            try:
                file.seek(start)
                while start < size:
                    part = file.read(min(PART_BYTES, size - start))
                    if not part:
                        raise UpdateError(f"{shown_path(path)} ended at byte {start:,} of {size:,}; {_COPY}")
                    start += len(part)
                    yield part
            except OSError as error:
                raise UpdateError(f"{shown_path(path)} cannot be read ({error.strerror or error}); {_COPY}") from error
