"""A tokenizer that a run of tests has converted is not converted again: the process takes longer than a tiny export.

In: a folder. Out: `edge.export.interop.openvino_tokenizer.start`, which copies the files of equal tokenizers out of it.
Exports in processes of their own convert, and so do tests of the conversion, which import the real one.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from edge.export.interop.openvino_tokenizer import FILES, Conversion
from edge.runtime.bundle import TOKENIZER


class _Kept(Conversion):
    """A real conversion, whose files are kept."""

    def __init__(self, folder: Path, eos_token_id: int | None, kept: Path) -> None:
        super().__init__(folder, eos_token_id)
        self._kept = kept

    def finish(self) -> str | None:
        reason = super().finish()
        if reason is None and not self._kept.exists():
            made = Path(tempfile.mkdtemp(dir=self._kept.parent))
            for name in FILES:
                shutil.copyfile(self._folder / name, made / name)
            with contextlib.suppress(OSError):  # another process was faster
                made.rename(self._kept)
        return reason


class _Copied(Conversion):
    """Files of an equal tokenizer, which are there when the export waits for them."""

    def __init__(self, folder: Path, kept: Path) -> None:
        self._folder, self._kept, self._reason = folder, kept, None

    def finish(self) -> str | None:
        if self._reason is None:
            for name in FILES:
                shutil.copyfile(self._kept / name, self._folder / name)
        return self._reason

    def cancel(self) -> None:
        for name in FILES:
            (self._folder / name).unlink(missing_ok=True)
        self._reason = "the conversion was cancelled"


def kept_in(store: Path) -> Callable[[Path, int | None], Conversion]:
    """`start` with a memory; several processes may share it."""

    def start(folder: Path, eos_token_id: int | None) -> Conversion:
        key = hashlib.sha256((folder / TOKENIZER).read_bytes() + f" {eos_token_id}".encode()).hexdigest()
        kept = store / key
        return _Copied(folder, kept) if kept.exists() else _Kept(folder, eos_token_id, kept)

    return start
