"""The folder of a kiosk: whether one can be made at a place, and making it whole or not at all.

In: a path, files as text, and a function that writes the one file that takes time to compute. Out: the folder. Knows
nothing about what is in the files.

The files are written in a hidden folder: beside a folder that does not exist yet, which is then renamed, or inside one
that is there and empty (it may be a mount point), where each file then gets its name unless something else has it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from edge.runtime.atomic import write_atomically
from edge.runtime.errors import OutputError, shown
from edge.runtime.files import real_path, shown_path

_SYSTEM = ("lost+found",)  # what a file system keeps in its root folder
_NEW = ".edgeglm-new-"
_READABLE, _READ_BY_ALL = 0o755, 0o644


def check_place(folder: Path) -> Path:
    """Return the folder as an absolute path without links. Raises OutputError where none can be made."""
    place = real_path(folder)
    try:
        if place.is_symlink():
            raise OutputError(f"{shown_path(folder)} is a link that leads to itself; name another folder")
        if not place.exists():
            parent = place.parent
            if not parent.is_dir():
                raise OutputError(f"{shown_path(parent)}: no such folder to make {shown(place.name)} in; make it first")
        elif not place.is_dir():
            raise OutputError(f"{shown_path(folder)} exists and is not a folder; name another one")
        else:
            _check_empty(folder, place)
            parent = place
        if not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"{shown_path(parent)} may not be written by you; name a folder elsewhere")
    except OSError as error:
        raise _unwritable(folder, error) from error
    return place


def write_folder(
    place: Path, texts: Mapping[str, str], computed: str, compute: Callable[[Path], None], owner: str | None = None
) -> None:
    """Make the folder with these files, and with the file `computed`, which `compute` writes to the path that it gets.

    Everybody may read all of them, whatever the umask says. owner: the user that they are given to, by a process that
    may. Raises OutputError, and whatever `compute` raises; what was there before is
    then as it was.
    """
    try:
        exists = place.is_dir()
        with _work_folder(place, inside=exists) as work:
            compute(work / computed)
            for name, text in texts.items():
                write_atomically(work / name, [text.encode()], private=False)
            for path in work.iterdir():
                path.chmod(_READ_BY_ALL)
            work.chmod(_READABLE)
            if owner is not None and sys.platform != "win32":
                for path in (*work.iterdir(), work):
                    shutil.chown(path, owner)
            if exists:
                _check_empty(place, place, besides=work.name)
                _fill(work, place, (computed, *texts))
            else:
                work.rename(place)  # onto nothing, or an empty folder
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise OutputError(f"{shown_path(place)} appeared meanwhile, and is not replaced") from error
        raise _unwritable(place, error) from error


@contextmanager
def _work_folder(place: Path, *, inside: bool) -> Iterator[Path]:
    """A new folder in the place or beside it, which is gone at the end unless it was renamed."""
    work = Path(tempfile.mkdtemp(prefix=_NEW, dir=place if inside else place.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fill(work: Path, place: Path, names: tuple[str, ...]) -> None:
    """Give each file of the work folder its name in the place; none of them if one name is taken. Raises OSError."""
    done: list[Path] = []
    try:
        for name in names:
            os.link(work / name, place / name)
            done.append(place / name)
    except BaseException:
        for path in done:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _check_empty(given: Path, place: Path, besides: str = "") -> None:
    found = sorted(entry.name for entry in place.iterdir() if entry.name not in (*_SYSTEM, besides))
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise OutputError(
            f"{shown_path(given)} holds {shown(found[0])}{more}, and nothing in it is replaced; name a new or an empty "
            "folder"
        )


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"{shown_path(folder)} cannot be made ({error.strerror or error}); name another folder")
