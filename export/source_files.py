"""Whether the files of a checkpoint are still those that an export began with.

In: the files, at the beginning; digests of what was read from them, at the end. Out: an error where they changed.

A file that was written to has another size or date (to the nanosecond), and these are compared. The content is compared
too for small files, and for a large one that was replaced by another file with the same size and date. What goes
unnoticed is a program that changes weights in place and then sets their date back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from edge.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edge.export.plan import tensor_sha256
from edge.runtime.errors import CheckpointError
from edge.runtime.files import sha256_of

_SMALL_BYTES = 32_000_000  # files up to here are hashed, which takes milliseconds


class SourceFiles:
    """The files as they are when this is made. Raises OSError where one cannot be read."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._stats = {file: _stat(file) for file in files}
        self._hashes = {file: sha256_of(file) for file, stat in self._stats.items() if stat[0] <= _SMALL_BYTES}

    def check_unchanged(self, checkpoint: Checkpoint, tensors: Mapping[str, str]) -> None:
        """Compare with how they are now; `tensors` are the sha256 of those read. Raises CheckpointError."""
        for file in self._stats:
            if not self._is_as_it_was(file):
                raise CheckpointError(
                    f"{file} changed while the export ran, so the bundle would be a mixture; export it again when the "
                    "checkpoint is complete"
                )
        moved = any(_stat(file)[2] != stat[2] for file, stat in self._stats.items() if file not in self._hashes)
        if moved and tensor_sha256(open_checkpoint(checkpoint.path), tensors) != dict(tensors):
            raise CheckpointError(
                f"{checkpoint.path} was replaced by another checkpoint while the export ran; export it again"
            )

    def _is_as_it_was(self, file: Path) -> bool:
        try:
            if _stat(file)[:2] != self._stats[file][:2]:
                return False
            return file not in self._hashes or sha256_of(file) == self._hashes[file]
        except OSError:
            return False


def _stat(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
