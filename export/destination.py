"""The folder that a user wants a bundle in: what it holds now, whether a bundle may go there, and putting it there.

In: a path as the user gave it. Out: a `Destination`, or an error before anything is computed. Knows nothing about how
a bundle is made.

A folder that does not exist is made next to its place and renamed. One that exists is kept: it may be a mount point, a
link's target, a shell's current folder, or its parent may not be writable. The work is done inside it, and at the end
the files of the old bundle are moved aside, the new ones take their places, and only then are the old ones removed.
What a bundle's manifest does not name is never touched: a prefix file or a draft store stays.

    beside: PARENT/.NAME.partial     inside: OUT/.export.partial     each with bundle/ journal/ kept/ old/
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.runtime import bundle
from edge.runtime.atomic import name_beside
from edge.runtime.errors import OutputError, shown
from edge.runtime.files import sha256_of
from edge.runtime.json_reader import read_json_object

PARTIAL, LOCK = ".partial", ".edgeglm-lock"  # after the folder's name, or inside it where it exists already
PARTS = ("bundle", "journal", "kept", _OLD := "old")  # of a work folder
# What file systems keep in their root folder.
_SYSTEM = ("lost+found", "System Volume Information")
# Names that a new bundle may need, and that files not named by the old bundle's manifest must not have.
_OURS = re.compile(r"manifest\.json|openvino_\w+\.(xml|bin)|model\w*(\.\d+)?\.onnx(\.data)?|graph\.pbtxt|golden\.npz")
_CONFIGS = ("tokenizer.json", "chat_template.jinja", "config.json", "generation_config.json", "tokenizer_config.json")
_MAX_NAMED = 3  # unknown files in a message


@dataclass(frozen=True)
class Destination:
    """A place for a bundle, as it was found. `check_unchanged` compares, `take` moves the bundle there."""

    given: Path  # for messages
    path: Path  # absolute, without links
    inside: bool  # whether the folder existed, so that the work is done in it
    identity: tuple[object, ...]  # of what existed

    @property
    def work(self) -> Path:
        """The folder in which the bundle is made."""
        return self.path / f".export{PARTIAL}" if self.inside else name_beside(self.path, PARTIAL, hidden=True)

    @property
    def lock(self) -> Path:
        """The file that a process locks while it writes here."""
        return self.path / LOCK if self.inside else name_beside(self.path, LOCK, hidden=True)

    def check(self, force: bool) -> None:
        """Raises OutputError when what is at the place may not be replaced."""
        entries = self._entries()
        if not entries:
            return
        if bundle.MANIFEST not in entries:
            raise OutputError(
                f"{self.given} holds {_named(entries)} and is not a bundle, so it is not replaced; choose another or "
                "an empty folder"
            )
        if not force:
            raise OutputError(f"{self.given} exists already; choose another folder, or give --force to replace it")
        named = _files(manifest_of(self.path))
        clashing = [
            name for name in entries if ((self.path / name).is_dir() if name in named else _may_be_needed(name))
        ]
        if clashing:
            raise OutputError(
                f"{self.given} holds {_named(clashing)}, which its {bundle.MANIFEST} does not name and which is where "
                "the new bundle needs a file; move it away, or choose another folder"
            )

    def check_unchanged(self, force: bool) -> None:
        """Raises OutputError when the place changed since the beginning."""
        if not self.inside:
            if os.path.lexists(self.path) and not _is_empty_folder(self.path):
                raise OutputError(f"{self.given} appeared while the export ran, and is not replaced")
            return
        if _identity(self.path) != self.identity:
            raise OutputError(f"{self.given} changed while the export ran, and is not replaced")
        self.check(force)

    def take(self) -> None:
        """Move the work folder's bundle there. Raises OSError, and OutputError where it meets somebody else's file."""
        fresh = self.work / "bundle"
        if self.inside:
            _fill(fresh, self.path, self.work / "old")
            return
        if os.name == "nt" and _is_empty_folder(self.path):  # elsewhere, renaming replaces an empty folder
            self.path.rmdir()
        try:
            fresh.rename(self.path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise OutputError(f"{self.given} appeared while the export ran, and is not replaced") from error
            raise

    def repair(self) -> None:
        """Bring back what a killed process had moved aside, or remove it where its successor is in place.

        Raises OutputError when it is unclear which, and OSError.
        """
        old, fresh = self.work / "old", self.work / "bundle"
        if not self.inside or not old.is_dir():
            return
        begun = (old / bundle.MANIFEST).exists() or (fresh / bundle.MANIFEST).exists()
        if begun and not (self.path / bundle.MANIFEST).exists():
            _restore(fresh, self.path, old)
            return
        remove_bundle(old)
        if old.is_dir():
            raise OutputError(f"{old} holds {_named(_names(old))} of an earlier bundle; move or delete it")

    def _entries(self) -> set[str]:
        """The names in the folder, without those that are ours or the system's."""
        return _names(self.path) - {self.work.name, self.lock.name, *_SYSTEM} if self.inside else set()


def find_destination(out: Path) -> Destination:
    """The place of a bundle that is wanted at `out`. Raises OutputError for one that cannot take a bundle."""
    for place in (out, *out.parents):
        if _is_dangling(place):
            target = shown(os.path.realpath(place))
            raise OutputError(
                f"{place} is a link to {target}, which does not exist; mount its disk or make the folder, or remove "
                "the link"
            )
    path = Path(os.path.realpath(out))
    try:
        os.lstat(path)
    except FileNotFoundError:
        return Destination(out, path, False, ())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputError(f"{shown(str(out))} cannot be a folder ({reason}); choose another one") from error
    if not path.is_dir():
        raise OutputError(f"{out} is a file, expected a folder or a name that is free; choose another folder")
    try:
        return Destination(out, path, True, _identity(path))
    except OSError as error:
        raise OutputError(f"{out} cannot be read ({error.strerror}); choose another folder") from error


def manifest_of(folder: Path) -> dict[str, Any]:  # Any: JSON of any version
    """The manifest of a bundle of any version, as JSON. Raises OutputError for anything else.

    It is checked less strictly than that of a bundle to be opened: a bundle that is damaged, or of an earlier version,
    may be replaced. But it must be certain which files are its own.
    """
    advice = "delete it yourself, or choose another folder"
    data = read_json_object(folder / bundle.MANIFEST, OutputError, advice)
    files = data.get("files")
    if not isinstance(files, dict) or not {"schema_version", "source_sha256"} <= data.keys():
        raise OutputError(f"{folder} is not a bundle: its {bundle.MANIFEST} is something else's; {advice}")
    if wrong := [name for name in files if Path(name).name != name or name in ("", "..") or "\0" in name]:
        raise OutputError(
            f"{folder / bundle.MANIFEST} names {shown(wrong[0])}, which is not a file in the folder; {advice}"
        )
    return data


def remove_bundle(folder: Path) -> None:
    """Remove the files that a folder's manifest names, then the manifest, then the folder if it is empty.

    Does nothing in a folder without a bundle's manifest. Raises OSError.
    """
    try:
        names = _files(manifest_of(folder))
    except OutputError:
        names = frozenset()
    for name in sorted(names - {bundle.MANIFEST}) + sorted(names & {bundle.MANIFEST}):  # last, as it names the others
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            (folder / name).unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def check_ours(work: Path, parts: Collection[str]) -> None:
    """Raises OutputError when something at the name of a work folder does not consist of these parts."""
    if not os.path.lexists(work):
        return
    strange = sorted(_names(work) - {*parts}) if work.is_dir() and not work.is_symlink() else [work.name]
    if strange:
        raise OutputError(f"{work} is in the way: {_named(strange)} was not made by this version; move it or delete it")


def remove_work(work: Path, parts: Collection[str]) -> None:
    """Remove these parts of a work folder, then the folder if it is empty. An old bundle in it is not removed."""
    with contextlib.suppress(OSError):
        (work / _OLD).rmdir()
    for part in {*parts} - {_OLD}:
        if (work / part).is_file():
            (work / part).unlink(missing_ok=True)
        shutil.rmtree(work / part, ignore_errors=True)
    with contextlib.suppress(OSError):  # it does not exist, or somebody put something into it
        work.rmdir()


def _fill(fresh: Path, out: Path, old: Path) -> None:
    """Move a bundle's files into a folder; those of its old bundle are moved aside first and removed at the end.

    The old manifest goes first and the new one comes last: in between, nobody takes the folder for a bundle.
    """
    names = _files(manifest_of(fresh))
    leaving = _files(manifest_of(out)) if (out / bundle.MANIFEST).exists() else frozenset()
    old.mkdir(exist_ok=True)
    try:
        for name in sorted(leaving, key=lambda name: (name != bundle.MANIFEST, name)):
            if os.path.lexists(out / name):
                (out / name).rename(old / name)
        for name in sorted(names, key=lambda name: (name == bundle.MANIFEST, name)):
            _move_unless_there(fresh / name, out / name)
    except BaseException:
        if not (out / bundle.MANIFEST).exists():
            _restore(fresh, out, old)
        raise
    remove_bundle(old)


def _restore(fresh: Path, out: Path, old: Path) -> None:
    """Undo what `_fill` had done when it was interrupted; the order of its parts does not matter."""
    names = _files(manifest_of(fresh)) if (fresh / bundle.MANIFEST).exists() else frozenset()
    for name in names - {bundle.MANIFEST}:
        here, there = out / name, fresh / name
        if not os.path.lexists(there):
            if os.path.lexists(here):
                here.rename(there)
        elif os.path.lexists(here) and os.path.samestat(here.lstat(), there.lstat()):
            here.unlink()
    for name in sorted(_names(old), key=lambda name: (name == bundle.MANIFEST, name)):
        _move_unless_there(old / name, out / name)
    old.rmdir()


def _move_unless_there(file: Path, place: Path) -> None:
    """Rename a file; raises OutputError where the name is taken, which renaming would replace."""
    try:
        os.link(file, place, follow_symlinks=False)
    except FileExistsError as error:
        raise OutputError(f"{place} appeared while the export ran, and is not replaced") from error
    except (OSError, NotImplementedError):  # a file system without links
        if os.path.lexists(place):
            raise OutputError(f"{place} appeared while the export ran, and is not replaced") from None
        file.rename(place)
    else:
        file.unlink()


def _files(manifest: dict[str, Any]) -> frozenset[str]:
    """Names of a bundle's own files."""
    return frozenset({bundle.MANIFEST, *manifest["files"]})


def _may_be_needed(name: str) -> bool:
    return name in _CONFIGS or _OURS.fullmatch(name) is not None or name == bundle.GENAI_CONFIG


def _identity(folder: Path) -> tuple[object, ...]:
    """What distinguishes a folder from another at its place, and its bundle from another in it."""
    stat = folder.stat()
    try:
        manifest = sha256_of(folder / bundle.MANIFEST)
    except FileNotFoundError:
        manifest = ""
    return stat.st_dev, stat.st_ino, manifest


def _is_dangling(path: Path) -> bool:
    """Whether it is a link to nothing; False where that cannot be found out."""
    with contextlib.suppress(OSError, ValueError):
        return path.is_symlink() and not path.exists()
    return False


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _named(names: Collection[str]) -> str:
    shortened = [shown(name) for name in sorted(names)[:_MAX_NAMED]]
    return ", ".join(shortened) + (f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")
