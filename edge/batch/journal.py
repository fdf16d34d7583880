"""What is done of a batch, in a file beside its output, so that the next process continues where this one was ended.

In: what the batch is made of, and finished lines in any order. Out: the same lines in the order of the input. A line
is in the file before `add` returns; one that was cut off is removed when the file is opened. Knows nothing about what a
line says.

    edgeglm batch 1                         the format
    {"bundle": "...", "input": "..."}       what it belongs to
    5d41402a 17 200 12 64 {"id": ...        crc32 of the rest, place, status, tokens read and written, the line
"""

from __future__ import annotations

import json
import os
import zlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edge.runtime.errors import OutputError
from edge.runtime.files import is_file, shown_path

_FORMAT = b"edgeglm batch 1\n"
_LONGEST_HEAD = 1 << 16


@dataclass(frozen=True, slots=True)
class Done:
    """One finished line."""

    index: int  # its place in the input
    status: int
    read: int  # tokens
    written: int
    line: bytes  # without its end


@dataclass(slots=True)
class Totals:
    """Sums over finished lines."""

    lines: int = 0
    failed: int = 0
    read: int = 0
    written: int = 0

    def add(self, done: Done) -> None:
        """Count one more."""
        self.lines += 1
        self.failed += done.status != 200
        self.read += done.read
        self.written += done.written


class Journal:
    """Finished lines of one batch. Raises OutputError if the file belongs to something else, or cannot be written."""

    def __init__(self, path: Path, parts: Mapping[str, str], num_lines: int, *, anew: bool = False) -> None:
        """parts: everything that decides the lines, by name. anew: drop what another batch has done."""
        self.path = path
        self.totals = Totals()
        self.replaced = False  # whether another batch's work was dropped
        self._places = array("q", [-1]) * num_lines
        if os.path.lexists(path) and not is_file(path):
            raise OutputError(f"{shown_path(path)} is in the way of what is kept of a batch; move it away")
        try:
            self._file = path.open("r+b" if path.exists() else "x+b", buffering=0)
            try:
                self._end = self._open(parts, anew=anew)
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise self._failed(error) from error

    def __contains__(self, index: int) -> bool:
        """Whether the line at this place is done."""
        return self._places[index] >= 0

    def lines(self) -> Iterator[bytes]:
        """Return the finished lines in the order of the input, with their ends. Raises OutputError."""
        with self._reading() as file:
            for index, place in enumerate(self._places):
                if place < 0:
                    continue
                file.seek(place)
                done = _parsed(file.readline())
                if done is None or done.index != index:
                    raise OutputError(f"{shown_path(self.path)} was changed meanwhile; remove it and start again")
                yield done.line + b"\n"

    @property
    def mode(self) -> int:
        """Who may read the file."""
        return os.fstat(self._file.fileno()).st_mode & 0o777

    def add(self, done: Done) -> None:
        """Keep a finished line. Raises OutputError, having kept what was there before."""
        try:
            self._file.seek(self._end)
            self._write(_record(done))
        except OSError as error:
            self._cut()
            raise self._failed(error) from error
        except BaseException:  # Ctrl-C in between
            self._cut()
            raise
        self._places[done.index] = self._end
        self._end = self._file.tell()
        self.totals.add(done)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def remove(self) -> None:
        """Remove the file: the output holds all of it."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _open(self, parts: Mapping[str, str], *, anew: bool) -> int:
        """Read what is done; return where the next record goes."""
        head = json.dumps(dict(sorted(parts.items()))).encode() + b"\n"
        with self._reading() as file:
            found = file.read(len(_FORMAT))
            if not _FORMAT.startswith(found):
                raise OutputError(f"{shown_path(self.path)} is not what is kept of a batch; move it away")
            known = file.readline(_LONGEST_HEAD)
            if known == head:
                return self._take(file)
        if known.endswith(b"\n"):  # whole, and another's
            if not anew:
                raise OutputError(_other_batch(self.path, known, parts))
            self.replaced = True
        self._file.truncate(0)
        self._write(_FORMAT + head)
        return self._file.tell()

    def _take(self, file: BinaryIO) -> int:
        """Find the records; cut off what comes after the last whole one, and return where that ends."""
        end = file.tell()
        while (done := _parsed(raw := file.readline())) is not None and done.index < len(self._places):
            if done.index not in self:
                self.totals.add(done)
            self._places[done.index] = end
            end += len(raw)
        self._file.truncate(end)
        return end

    def _reading(self) -> BinaryIO:
        """Return the file with a buffer: a line of a file without one is read byte by byte."""
        return self.path.open("rb")

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def _cut(self) -> None:
        """Remove what was written of a record."""
        try:
            self._file.seek(self._end)
            self._file.truncate()
        except OSError:
            pass  # it is found to be cut off when the file is opened again

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            f"{shown_path(self.path)} cannot be written ({error.strerror or error}); free some space or check the "
            "folder: what is done is kept, and the same command resumes there"
        )


def _record(done: Done) -> bytes:
    rest = b"%d %d %d %d %s" % (done.index, done.status, done.read, done.written, done.line)
    return b"%08x %s\n" % (zlib.crc32(rest), rest)


def _parsed(raw: bytes) -> Done | None:
    """Return a record; None if it is not one, or not whole."""
    check, _, rest = raw.removesuffix(b"\n").partition(b" ")
    if not raw.endswith(b"\n") or check != b"%08x" % zlib.crc32(rest):
        return None
    numbers = rest.split(b" ", 4)
    try:
        index, status, read, written = map(int, numbers[:4])
        return Done(index, status, read, written, numbers[4])
    except (ValueError, IndexError):
        return None


def _other_batch(path: Path, known: bytes, parts: Mapping[str, str]) -> str:
    try:
        before = dict(json.loads(known))
    except (ValueError, TypeError):
        before = {}
    changed = [name for name in sorted({*before, *parts}) if before.get(name) != parts.get(name)]
    return (
        f"{shown_path(path)} keeps what is done of another batch (other: {', '.join(changed)}); run that one to "
        "its end, write to another file, or --force to drop it"
    )
