"""The files of a release brought together in a folder: those that are here already are linked, the others fetched.

In: a source, the manifest that its release names, the bundle that is used now, and the work folder. Out: a bundle whose
files all have the manifest's sha256 and are on the disk. Knows nothing about slots and signatures.

A file that is not whole yet is called SHA256.part, so that the next attempt goes on with it, for whichever release.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from edge.runtime.atomic import sync_folder, write_durably
from edge.runtime.bundle import MANIFEST
from edge.runtime.errors import OutputError, UpdateError
from edge.runtime.files import shown_path
from edge.runtime.manifest import FileRecord, Manifest
from edge.runtime.sizes import human_bytes
from edge.update import release as releases
from edge.update.slots import free_bytes, manifest_in
from edge.update.source import Source

MARGIN_BYTES = 16_000_000  # for folders, small files and what else is written meanwhile
_PART = ".part"
_BLOCK = 1 << 20
How = Literal["fetched", "here"]
Told = Callable[[str, int, How], None]


@dataclass(slots=True)
class Fetched:
    """How many bytes came from where."""

    fetched: int = 0
    here: int = 0
    _told: Told = field(default=lambda _name, _size, _how: None)

    def take(self, name: str, size: int, how: How, came: int) -> None:
        self.fetched += came
        self.here += size - came
        self._told(name, size, how)


def check_room(folder: Path, manifest: Manifest, current: Path | None, emptied: Path) -> None:
    """Raise OutputError if the disk cannot hold what has to be fetched, before anything is removed.

    emptied: the folder whose files make room, there or not.
    """
    here = _digests(current)
    # A file of the right size is either right, or makes room for the right one, unless it has another name.
    kept = {
        name
        for name, record in manifest.files.items()
        if _has_size(emptied / name, record) and (emptied / name).stat().st_nlink == 1
    }
    needed = sum(
        record.size - _size(emptied / f"{record.sha256}{_PART}", record.size)
        for name, record in manifest.files.items()
        if name not in kept and record.sha256 not in here
    )
    freed = sum(_freed(one) for one in _entries(emptied) if one.name not in kept and one.suffix != _PART)
    free = free_bytes(folder) + freed
    if needed + MARGIN_BYTES > free:
        raise OutputError(
            f"{shown_path(folder)}: the release needs {human_bytes(needed + MARGIN_BYTES)} of the disk, "
            f"{human_bytes(free)} are free; make room"
        )


def fetch(
    source: Source, manifest: Manifest, small: dict[str, bytes], current: Path | None, work: Path, told: Told
) -> Fetched:
    """Bring all files of a manifest into the work folder, and remove what else is in it.

    small: the manifest's and the release's own bytes, which are written last: until then the folder is no bundle.
    Raises UpdateError and OutputError; what is there then is used by the next attempt.
    """
    done = Fetched(_told=told)
    here = _digests(current)
    try:
        _remove_others(work, manifest)
        for name, record in sorted(manifest.files.items(), key=lambda item: item[1].size):
            target = work / name
            if is_whole(target, record) or _linked(here.get(record.sha256), target, record):
                done.take(name, record.size, "here", 0)
            else:
                target.unlink(missing_ok=True)
                done.take(name, record.size, "fetched", _fetch_file(source, name, record, work))
        for name, content in small.items():
            write_durably(work / name, content)
        sync_folder(work)
    except OSError as error:
        raise _unwritten(work, error) from error
    return done


def is_whole(path: Path, record: FileRecord) -> bool:
    """Whether a path is an ordinary file with these very bytes. Raises OSError."""
    if not _has_size(path, record):
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256


def _fetch_file(source: Source, name: str, record: FileRecord, work: Path) -> int:
    """Fetch a file, from where an earlier attempt ended; return how many bytes came. Raises UpdateError and OSError."""
    part = work / f"{record.sha256}{_PART}"
    came = 0
    with part.open("a+b") as file:
        if os.fstat(file.fileno()).st_size > record.size:
            file.truncate(0)
        resumed = bool(os.fstat(file.fileno()).st_size)
        while True:
            digest = _digest_so_far(file)
            for piece in source.parts(name, file.tell(), record.size):
                file.write(piece)
                digest.update(piece)
                came += len(piece)
            if digest.hexdigest() == record.sha256:
                break
            file.truncate(0)  # what a power cut left may be anything
            if not resumed:
                raise UpdateError(f"{source}: {name} has another sha256 than the manifest says; publish it again")
            resumed = False
        file.flush()
        os.fsync(file.fileno())
    part.replace(work / name)
    return came


def _digest_so_far(file: BinaryIO) -> hashlib._Hash:
    """Read a file from its beginning; it is at its end then."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest


def _linked(here: Path | None, target: Path, record: FileRecord) -> bool:
    """Use a file of the current bundle, if it has the very bytes: as a link, or a copy where there are no links."""
    if here is None or not is_whole(here, record):
        return False
    target.unlink(missing_ok=True)
    try:
        os.link(here, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        fresh = target.with_name(f"{record.sha256}{_PART}")
        shutil.copyfile(here, fresh)
        with fresh.open("r+b") as file:
            os.fsync(file.fileno())
        fresh.replace(target)
        return is_whole(target, record)
    return True


def _remove_others(work: Path, manifest: Manifest) -> None:
    """Remove what is neither a file of this manifest, by name and size, nor a part of one. Raises OSError."""
    parts = {f"{record.sha256}{_PART}" for record in manifest.files.values()}
    for one in _entries(work):
        record = manifest.files.get(one.name)
        if one.is_dir() and not one.is_symlink():
            shutil.rmtree(one)
        elif not (one.name in parts and _is_plain(one)) and not (record is not None and _has_size(one, record)):
            one.unlink()


def _digests(bundle: Path | None) -> dict[str, Path]:
    """sha256 -> the file of a bundle that is said to have it."""
    manifest = None if bundle is None else manifest_in(bundle)
    if bundle is None or manifest is None:
        return {}
    return {record.sha256: bundle / name for name, record in manifest.files.items()}


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []


def _has_size(path: Path, record: FileRecord) -> bool:
    return _is_plain(path) and path.stat().st_size == record.size


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _size(path: Path, most: int) -> int:
    """Bytes of a file that is there, at most as many as it should have."""
    return min(path.stat().st_size, most) if path.is_file() else 0


def _freed(path: Path) -> int:
    """What removing a file gives back: nothing as long as another name is left."""
    status = path.lstat()
    return status.st_size if status.st_nlink == 1 else 0


def _unwritten(work: Path, error: OSError) -> OutputError:
    full = f": {human_bytes(free_bytes(work))} are free" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return OutputError(
        f"{shown_path(error.filename or work)} cannot be written ({error.strerror or error}{full}); mend that, and the "
        f"same command goes on; {MANIFEST} and {releases.FILE} come last, so nothing half is ever used"
    )
