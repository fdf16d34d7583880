"""A bundle removed: the files that its manifest names, and its folder if nothing else is in it.

In: the folder of a bundle. Out: how many bytes are free now, and what was left. Follows no link, and takes nothing from
a process that uses it, as far as that can be known.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge.export.destination import find_destination, manifest_of, remove_bundle
from edge.models.in_use import users_of
from edge.runtime.bundle import MANIFEST, is_bundle
from edge.runtime.compiled import remove_of
from edge.runtime.errors import BundleError, OutputError
from edge.runtime.files import shown_path
from edge.runtime.locks import hold_now


@dataclass(frozen=True, slots=True)
class Removed:
    """What became of a bundle."""

    bytes: int  # of the files that are gone
    kept: tuple[str, ...]  # names in its folder that are not the bundle's own


def check_removable(path: Path) -> None:
    """Raises BundleError for what is not a bundle, and OutputError for one that may not be removed now."""
    if path.is_symlink():
        raise OutputError(
            f"{shown_path(path)} is a link to {shown_path(os.path.realpath(path))}; remove the link yourself, or give "
            "the folder that it leads to"
        )
    if not is_bundle(path):
        raise BundleError(f"{shown_path(path)} is not a bundle; `edge list` shows those that you have")
    manifest_of(path)
    if users := users_of(path):
        some = ", ".join(f"{name} ({pid})" for pid, name in users[:3])
        raise OutputError(f"{shown_path(path)} is in use by {some}; end it first")


def remove(path: Path) -> Removed:
    """Remove a bundle. Raises as `check_removable`, and OutputError for what the system does not let go."""
    check_removable(path)
    names = {MANIFEST, *manifest_of(path)["files"]}
    before = {name: _bytes(path / name) for name in names}
    try:
        with _locked(path):
            remove_bundle(path)
        with contextlib.suppress(OSError):  # while it was locked, it had a file more
            path.rmdir()
        kept = tuple(sorted(one.name for one in path.iterdir())) if path.is_dir() else ()
    except OSError as error:
        raise OutputError(
            f"{shown_path(path)} cannot be removed ({error.strerror or error}); once that is mended, the same command "
            "removes what is left"
        ) from error
    freed = remove_of(path)  # of no use without the weights
    return Removed(sum(size for name, size in before.items() if name not in kept) + freed, kept)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep an export away that would replace it. Raises OutputError if there is one."""
    with hold_now(find_destination(path).lock) as held:
        if not held:
            raise OutputError(f"an export is writing {shown_path(path)}; wait for it, or end it first")
        yield


def _bytes(path: Path) -> int:
    with contextlib.suppress(OSError):
        return os.lstat(path).st_size
    return 0
