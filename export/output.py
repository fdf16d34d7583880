"""Where an export is written: whole, or not at all; and where a killed one goes on.

In: the folder a user asked for and a key that says what is being made. Out: a work folder beside it that takes its
place at the end, and in it a journal of what is done already. An error removes the work folder; a killed process leaves
it, and the next export with the same key goes on from its journal. Knows nothing about what is written into it, except
that only a bundle may be replaced.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge.runtime import bundle
from edge.runtime.atomic import write_durably
from edge.runtime.errors import OutputError
from edge.runtime.locks import try_lock

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Journal:
    """What is done of an export: a list of steps, each a JSON object. On the disk before `add` returns.

    Its `folder` also takes what a step needs of the one before it.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self._path = folder / "journal.json"
        self._key = key
        self.steps: list[Mapping[str, Any]] = []
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not there, or cut off: start anew
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if found["key"] == key:
                self.steps = list(found["steps"])

    def add(self, step: Mapping[str, object]) -> None:
        """Record one more step."""
        self.steps.append(step)
        text = json.dumps({"key": self._key, "steps": self.steps})
        write_durably(self._path, text.encode())


@contextmanager
def work_folder(out: Path, force: bool, key: str) -> Iterator[tuple[Path, Journal]]:
    """The folder `.NAME.partial` beside `out`; it takes its place when the body succeeds, and vanishes when it fails.

    What a killed export left there stays if its key is the same, with the journal that tells how far it came.
    Raises OutputError when `out` may not be replaced or written, and when another process is at work there.
    """
    if out.exists() and not force:
        raise OutputError(f"{out} exists already; choose another folder, or give --force to replace it")
    if out.exists() and not (out.is_dir() and (bundle.is_bundle(out) or not any(out.iterdir()))):
        raise OutputError(f"{out} is not a bundle, so --force does not replace it; choose another folder")
    folder, lock = out.parent / f".{out.name}.partial", out.parent / f".{out.name}.lock"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        holder = lock.open("a")
    except OSError as error:
        raise OutputError(f"{out.parent} cannot be written ({error.strerror}); choose another folder") from error
    with holder:
        if not try_lock(holder.fileno()):
            raise OutputError(f"{out} is being written by another export; wait for it, or choose another folder")
        try:
            folder.mkdir(exist_ok=True)
            journal = Journal(folder / "journal", key)
            if not journal.steps:
                shutil.rmtree(folder)
                journal.folder.mkdir(parents=True)
            yield folder, journal
            for inner in folder.iterdir():  # the journal, and what a helper of a killed export may have left
                if inner.is_dir():
                    shutil.rmtree(inner)
            _take_place(folder, out)
        except OSError as error:
            if error.errno in FULL:
                raise OutputError(f"{out.parent}: the disk is full ({error.strerror}); free some space") from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another export may be waiting at it already
                lock.unlink()


def check_space(folder: Path, needed: int) -> None:
    """Raises OutputError when `needed` bytes do not fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(f"{folder.parent}: {free:,} bytes free, the bundle needs about {needed:,}; free some space")


def _take_place(folder: Path, out: Path) -> None:
    if not out.exists():
        folder.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent)) / out.name
    out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        old.rename(out)
        raise
    finally:
        shutil.rmtree(old.parent)
