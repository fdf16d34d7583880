"""Where an export is written: whole, or not at all.

In: the folder a user asked for. Out: a temporary folder beside it that takes its place at the end. Knows nothing about
what is written into it, except that only a bundle may be replaced.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.runtime import bundle
from edge.runtime.errors import OutputError


@contextmanager
def finished_folder(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the body succeeds, and vanishes when it does not."""
    if out.exists() and not force:
        raise OutputError(f"{out} exists already; choose another folder, or give --force to replace it")
    if out.exists() and not (out.is_dir() and (bundle.is_bundle(out) or not any(out.iterdir()))):
        raise OutputError(f"{out} is not a bundle, so --force does not replace it; choose another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise OutputError(f"{out.parent} cannot be written ({error.strerror}); choose another folder") from error
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes it private
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent)) / out.name
            out.rename(old)
            try:
                folder.rename(out)
            except OSError:
                old.rename(out)
                raise
            finally:
                shutil.rmtree(old.parent)
        else:
            folder.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(f"{out.parent}: the disk is full ({error.strerror}); free some space") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_space(folder: Path, needed: int) -> None:
    """Raises OutputError when `needed` bytes do not fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(f"{folder.parent}: {free:,} bytes free, the bundle needs about {needed:,}; free some space")
