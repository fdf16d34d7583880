"""Opening a draft store whatever happened to its file: a damaged one never keeps a model from starting.

In: the path of a store. Out: the store, and a line about a file that was damaged. A file of another kind, or another
tokenizer's store, is somebody's: it is refused, and stays.
"""

from __future__ import annotations

import os
from pathlib import Path

from edge.runtime.atomic import name_beside
from edge.runtime.files import is_blank, is_file, real_path, shown_path
from edge.runtime.notices import notice
from edge.runtime.speculation.store import DamagedStoreError, DraftStore, is_store

_ASIDE = ".damaged"


def open_store(path: Path, tokenizer_sha256: str, *, num_ids: int) -> DraftStore:
    """Open a store, or create an empty one; where the file is damaged, set it aside first.

    If that fails, what is added stays in memory. Raises DraftStoreError for a file that is not a store, or another
    tokenizer's, and OutputError if a new one cannot be created.
    """
    try:
        return DraftStore.open(path, tokenizer_sha256, num_ids=num_ids)
    except DamagedStoreError as error:
        if not _is_ours(file := real_path(path)):
            raise
        reason = str(error).rpartition("; ")[0]
    try:
        aside = _set_aside(file)
    except OSError as error:
        notice(f"{reason}; drafts of this session are not kept, since it cannot be moved away ({error.strerror})")
        return DraftStore.in_memory(tokenizer_sha256, num_ids=num_ids)
    if aside is None:
        notice(f"{shown_path(path)} is empty; begun anew", usual=True)
    else:
        notice(f"{reason}; moved to {shown_path(aside)}, and begun anew")
    return DraftStore.open(path, tokenizer_sha256, num_ids=num_ids)


def _set_aside(path: Path) -> Path | None:
    """Give a file another name, and return that; None if there was nothing in it, and it is gone. Raises OSError."""
    if not path.stat().st_size:
        path.unlink()
        return None
    number, aside = 1, name_beside(path, _ASIDE)
    while os.path.lexists(aside) and not _is_ours(aside):
        number += 1
        aside = name_beside(path, f".{number}{_ASIDE}")
    path.replace(aside)
    return aside


def _is_ours(path: Path) -> bool:
    """Whether a file is a store, or what a power cut can leave of one."""
    try:
        return is_file(path) and (is_store(path) or is_blank(path))
    except OSError:  # the disk fails
        return False
