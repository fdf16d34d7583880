"""Where an export is written: completely or not at all; and where an interrupted one resumes.

In: the folder a user asked for and a key that says what is being made. Out: a work folder for the body of a `with`,
whose bundle is moved into place at the end, and in it a journal of what is done already. An error that the same input
would cause again removes the work folder. Any other (an interrupt, a full disk, something in the way at the end) leaves
it, as a killed process does, and the next export with the same key resumes from its journal, unless it is told to
start anew. Knows nothing about what is written into it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge.export.destination import PARTIAL, PARTS, Destination, check_ours, find_destination, remove_work
from edge.export.journal import NAME as journal_file
from edge.export.journal import Journal
from edge.runtime.atomic import name_beside
from edge.runtime.errors import EdgeError, OutputError
from edge.runtime.locks import hold_now

BLOCKS = "blocks"  # a fact of the journal: how many decoder blocks the model has
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Work:
    """An export in progress."""

    root: Path  # a hidden folder
    journal: Journal

    @property
    def folder(self) -> Path:
        """The bundle's folder: what is in it when the body ends is the bundle."""
        return self.root / "bundle"

    @property
    def kept(self) -> Path:
        """The folder of files that outlast a change of the key; each says itself what it is valid for."""
        return self.root / "kept"

    @property
    def pictures(self) -> Path:
        """The folder of the picture tower's own journal."""
        return self.kept / "pictures"

    def clear(self, *keep: str) -> None:
        """Remove everything but these files that an interrupted export left in the bundle's folder."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in keep:
                path.unlink()


@contextmanager
def work_folder(out: Path, force: bool, key: str, *, fresh: bool = False) -> Iterator[Work]:
    """A folder to make a bundle in; the bundle takes its place at `out` when the body succeeds.

    What an interrupted export left there is kept if its key is the same, with the journal that says how far it came. An
    error that leaves it has a note (PEP 678) that says how to resume. fresh: nothing of it is kept.

    Raises OutputError when `out` may not be replaced or written, when another process is at work there, when the disk
    is full, and when `out` changed between the beginning and the end.
    """
    place = find_destination(out)
    if not (place.work / "old").exists():
        with _told(place.given):
            place.check(force)
    with ExitStack() as stack:
        try:
            place.path.parent.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(hold_now(place.lock))
        except OSError as error:
            where = out if place.inside else out.parent
            raise OutputError(f"{where} cannot be written ({error.strerror}); choose another folder") from error
        if not held:
            raise OutputError(f"{out} is being written by another export; wait for it, or choose another folder")
        with _told(place.given):
            place.repair()
            place = find_destination(out)
            place.check(force)
            work = _open_work(place, key, fresh)
        yield from _guarded(place, work, force)


def check_space(folder: Path, needed: int) -> None:
    """Raises OutputError when `needed` bytes do not fit on the disk of a work folder."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{folder.parents[1]}: {free:,} bytes free, the bundle needs about {needed:,}; free some space"
        )


@contextmanager
def graphs_written(folder: Path) -> Iterator[None]:
    """What OpenVINO raises where it cannot write a graph into a work folder's bundle, as an OutputError."""
    try:
        yield
    except RuntimeError as error:
        raise OutputError(
            f"{folder.parents[1]}: the model could not be written ({error}); the disk is full or refuses, free some "
            "space"
        ) from error


def told_kept(work: Path) -> str:
    """What is in a work folder, in words: how far it came, and how to resume. Its journal may be damaged."""
    how = f"what is done is kept in {work}: the same command resumes there, --fresh starts anew"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        journal = json.loads((work / "journal" / journal_file).read_bytes())
        blocks, done = int(journal["facts"][BLOCKS]), len(journal["steps"]) - 1
        if done >= blocks and (last := _last_of_tower(work)) is not None:
            return f"stopped after {last}; {how}"
        if done >= 0:
            return f"stopped after {f'block {done} of {blocks}' if done else 'the embedding'}; {how}"
    return how


def _last_of_tower(work: Path) -> str | None:
    """The stage of the picture tower that was done last; None where none was. Its journal may be damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        journal = json.loads((work / "kept" / "pictures" / journal_file).read_bytes())
        return str(journal["steps"][-1]["stage"])
    return None


def _open_work(place: Destination, key: str, fresh: bool) -> Work:
    """The work folder, with what it already holds if that is for the same key."""
    if place.inside and not place.work.exists():
        # An export may have begun before the folder existed.
        beside = name_beside(place.path, PARTIAL, hidden=True)
        if beside.is_dir():
            check_ours(beside, PARTS)
            try:
                beside.rename(place.work)
            except OSError as error:
                raise OutputError(
                    f"{beside} is left over from an export and cannot be moved into {place.given} ({error.strerror}); "
                    "move or delete it"
                ) from error
    check_ours(place.work, PARTS)
    if fresh:
        remove_work(place.work, PARTS)
    work = Work(place.work, Journal(place.work / "journal", key))
    if work.journal.empty:
        shutil.rmtree(work.folder, ignore_errors=True)
    for folder in (work.folder, work.kept):
        folder.mkdir(exist_ok=True)
    return work


def _guarded(place: Destination, work: Work, force: bool) -> Iterator[Work]:
    """Hand out the work, then move the bundle into place; on an error keep what is worth keeping."""
    made = taken = False
    try:
        yield work
        made = True
        for path in work.folder.iterdir():
            if path.is_dir():  # what a helper of a killed export may have left
                shutil.rmtree(path)
            else:
                _sync(path)
        try:
            place.check_unchanged(force)
            place.take()
        except OutputError as error:
            raise OutputError(f"{error}; {_finished(work)}") from error
        except OSError as error:
            raise OutputError(
                f"{place.given} cannot be put in place ({error.strerror or error}); {_finished(work)}"
            ) from error
        taken = True
        remove_work(work.root, PARTS)
    except BaseException as error:
        told = _in_our_words(error, place, work)
        worth = not taken and (made or bool(work.journal.steps) or _has_files(work.kept))
        if not work.root.is_dir() or not worth or not _may_pass(told):
            remove_work(work.root, PARTS)
        elif not (made and isinstance(told, OutputError)):  # which says it already
            kept = told_kept(work.root)
            if isinstance(told, OutputError):
                raise OutputError(f"{told}; {kept}") from error
            told.add_note(kept)
        if told is error:
            raise
        raise told from error


def _finished(work: Work) -> str:
    return (
        f"the finished bundle is kept as {work.folder}: move it to where you want it, or move away what is in its "
        "place and run the same command again"
    )


def _in_our_words(error: BaseException, place: Destination, work: Work) -> BaseException:
    """The error, or an OutputError instead where the system refused something."""
    if isinstance(error, Exception) and not work.root.is_dir():
        return OutputError(f"{work.root} was removed while the export worked in it; run the command again")
    if not isinstance(error, OSError) or error.errno is None or isinstance(error, BrokenPipeError):
        return error
    parent = work.root.parent
    if error.errno in FULL:
        return OutputError(f"{parent}: the disk is full ({error.strerror}); free some space")
    file = "" if error.filename is None else f" at {error.filename}"
    return OutputError(f"the export to {place.given} failed: {error.strerror}{file}; run the command again")


def _may_pass(error: BaseException) -> bool:
    """Whether the same input may succeed the next time."""
    return not isinstance(error, EdgeError) or isinstance(error, OutputError)


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))


def _sync(path: Path) -> None:
    """Have a file on the disk before anything that it replaces is removed."""
    descriptor = os.open(path, os.O_RDWR)  # Windows does not sync a file that is only open for reading
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _told(given: Path) -> Iterator[None]:
    """Turn what the system refuses into an OutputError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise OutputError(f"{given}: the disk is full ({error.strerror}); free some space") from error
        raise OutputError(f"{given} cannot be written ({error.strerror}); choose another folder") from error
