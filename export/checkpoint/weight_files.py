"""Files that should hold weights, and what they are when they hold something else.

In: a path, or the first bytes of a file. Out: the opened file, or words for what is there instead: a Git LFS pointer, a
web page, half a download, a pickle. Knows nothing about the contents of the formats that it distinguishes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from edge.runtime.errors import CheckpointError, EdgeError, TensorError, shown
from edge.runtime.files import open_file

AGAIN = "download it again"
HEAD_BYTES = 512  # of a file are enough to tell what it is
# Suffixes that download programs give to an incomplete file, and that aria2 gives to the file it keeps next to one.
_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp")
_BESIDE = ".aria2"
_LFS = b"version https://git-lfs"
_PICKLE = "a PyTorch pickle, and unpickling can run code; use the model's safetensors or GGUF files"
_KINDS = (
    (_LFS, "a Git LFS pointer and not the file it points to; run `git lfs pull` in its folder, or download it"),
    (b"GGUF", "a GGUF file; give it a name that ends in .gguf, and give that file"),
    (b"PK\3\4", _PICKLE),
    (b"\x80\2", _PICKLE),
    (b"\x89HDF", "an HDF5 file; use the model's safetensors or GGUF files"),
    (b"lmgg", "a GGML file from before GGUF; get a GGUF file of the model"),
    (b"fmgg", "a GGML file from before GGUF; get a GGUF file of the model"),
    (b"tjgg", "a GGML file from before GGUF; get a GGUF file of the model"),
)


def open_weights(path: Path) -> BinaryIO:
    """Open an ordinary file. Raises TensorError for anything else, and for a download that is still running."""
    beside = path.with_name(path.name + _BESIDE)
    if os.path.lexists(beside):
        raise TensorError(f"{path}: {beside.name} beside it says that its download is not finished; finish it")
    return open_file(path, TensorError, AGAIN)


def other_kind(head: bytes) -> str | None:
    """What a file with these first bytes is, and what to do about it; None where that is not known."""
    if kind := next((kind for beginning, kind in _KINDS if head.startswith(beginning)), None):
        return kind
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page saved as the file; download the file itself, perhaps after logging in"
    if len(head) > 7 and not any(head):
        return "a file that begins with zeros, like an unfinished download; download it again"
    return None


def read_head(path: Path, error: type[EdgeError]) -> bytes:
    """The first bytes of a file. Raises `error`."""
    with open_file(path, error, AGAIN) as file:
        return file.read(HEAD_BYTES)


def refuse_lfs_pointer(path: Path, error: type[EdgeError]) -> None:
    """Raises `error` where a small file exists and is a Git LFS pointer."""
    if path.is_file() and read_head(path, error).startswith(_LFS):
        raise error(f"{path} is {other_kind(_LFS)}")


def is_unfinished(path: Path) -> bool:
    """Whether a file is named like one that is still being downloaded."""
    return path.suffix in _UNFINISHED


def unfinished_download_of(path: Path) -> Path | None:
    """The file that holds an unfinished download of `path`, if there is one."""
    names = (path.with_name(path.name + suffix) for suffix in _UNFINISHED)
    return next((name for name in names if os.path.lexists(name)), None)


def unfinished_downloads(folder: Path) -> list[Path]:
    """Files in a folder, or where the hub's client keeps them, that are named so; in a stable order."""
    places = (folder, folder / ".cache" / "huggingface" / "download")
    return [path for place in places if place.is_dir() for path in sorted(place.iterdir()) if is_unfinished(path)]


def exists(path: Path) -> bool:
    """Whether a path exists. Raises CheckpointError for one that the file system does not accept."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise CheckpointError(f"{shown(str(path))} is not a path that can be read ({reason or error})") from error
    return True
