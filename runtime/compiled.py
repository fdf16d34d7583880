"""Models compiled ahead of time: files that a device's compiler made, and what they were made from.

In: a folder, and a key: everything that a compiled model depends on. Out: the bytes of the one with this key, checked.
Knows nothing about compilers.

    HASH.blob   the compiled model; HASH is that of its key
    HASH.json   its key, its sha256, and the bundle it was made from

OpenVINO takes a blob whose bytes have changed without a word, so bytes are imported only if their sha256 is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edge.runtime.atomic import write_atomically
from edge.runtime.cache_folder import cache_folder
from edge.runtime.errors import BundleError, OutputError
from edge.runtime.files import is_file, read_file, real_path, shown_path
from edge.runtime.known_files import KnownFiles
from edge.runtime.notices import notice

FOLDER = "compiled"  # in the user's cache folder
BLOB, RECORD = ".blob", ".json"
MAX_RECORD_BYTES = 1 << 20
Key = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Compiled:
    """What is known about a compiled model."""

    key: dict[str, str]
    sha256: str
    size: int  # in bytes
    bundle: str  # where it was when it was compiled

    def to_json(self) -> bytes:
        return json.dumps({"edgeglm": "a compiled model", **asdict(self)}, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, raw: bytes) -> Compiled | None:
        """Return what was written by `to_json`; None for anything else."""
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or found.pop("edgeglm", None) != "a compiled model":
            return None
        key, sha256, size, bundle = (found.get(name) for name in ("key", "sha256", "size", "bundle"))
        texts = isinstance(key, dict) and all(isinstance(text, str) for text in (*key.values(), sha256, bundle))
        return cls(key, sha256, size, bundle) if texts and type(size) is int else None  # type: ignore[arg-type]


def default_folder() -> Path:
    """Where compiled models are kept if no folder is named. Raises OutputError for a user without a home."""
    return cache_folder() / FOLDER


def find(folder: Path, key: Key) -> bytes | None:
    """Return the compiled model with this key, whole and unaltered; None if there is none.

    One that is damaged, or was made from the same model with another key, is told in one line.
    """
    blob, record = _paths(folder, key)
    known = _read(record)
    if known is None or known.key != dict(key):
        if other := next((o for _, o in records(folder) if o.key.get("model") == key.get("model")), None):
            differ = [name for name in sorted({*key, *other.key}) if key.get(name) != other.key.get(name)]
            notice(
                f"{shown_path(folder)} has this model compiled for other {' and '.join(differ)}; it is compiled now, "
                "and `edge compile` makes a new one"
            )
        return None
    why = "is altered (its sha256 differs)"
    try:
        if KnownFiles().is_right(blob, known.sha256):
            return blob.read_bytes()
    except OSError as error:
        why = f"cannot be read ({error.strerror or error})"
    notice(f"{shown_path(blob)} {why}; the model is compiled now, and `edge compile` makes a new one")
    return None


def keep(folder: Path, key: Key, blob: bytes, bundle: Path) -> Path:
    """Write a compiled model; return its path. Raises OutputError, also where somebody else's file has its name."""
    path, record = _paths(folder, key)
    for one in (path, record):
        if one.exists() and _read(record) is None:
            raise OutputError(f"{shown_path(one)} exists and is not ours; remove it, or name another folder")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{shown_path(folder)} cannot be made ({error.strerror or error}); name another") from error
    known = Compiled(dict(key), hashlib.sha256(blob).hexdigest(), len(blob), str(real_path(bundle)))
    write_atomically(record, [known.to_json()], private=False)  # first: a record without its blob can be written again
    write_atomically(path, [blob], private=False)
    return path


def remove_of(bundle: Path) -> int:
    """Remove what was compiled from a bundle into the user's cache folder; return how many bytes are free now."""
    freed = 0
    with contextlib.suppress(OutputError, OSError):
        for record, known in list(records(default_folder())):
            if known.bundle == str(real_path(bundle)):
                record.unlink()
                record.with_suffix(BLOB).unlink()
                freed += known.size
    return freed


def records(folder: Path) -> Iterator[tuple[Path, Compiled]]:
    """Yield what is known of every compiled model in a folder."""
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob(f"*{RECORD}")):
            known = _read(path)
            if known is not None and _paths(folder, known.key)[1] == path:
                yield path, known


def _read(record: Path) -> Compiled | None:
    if not is_file(record):
        return None
    with contextlib.suppress(BundleError):
        return Compiled.from_json(read_file(record, BundleError, "remove it", max_bytes=MAX_RECORD_BYTES))
    return None


def _paths(folder: Path, key: Key) -> tuple[Path, Path]:
    name = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:32]
    return folder / f"{name}{BLOB}", folder / f"{name}{RECORD}"
