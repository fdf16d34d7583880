"""What bundles a user has, told from their manifests alone.

In: the models folder and the list of what was used last. Out: a record of each bundle, a damaged one included. Reads a
manifest and asks the sizes of its files; hashes nothing and opens no model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge.models.config_file import models_folder
from edge.models.find import name_of, names_in
from edge.models.recent import recent
from edge.runtime import manifest
from edge.runtime.bundle import MANIFEST
from edge.runtime.errors import COPY_AGAIN, BundleError
from edge.runtime.files import bytes_in, read_file, real_path
from edge.runtime.manifest import Manifest

_PARTIAL = ".partial"  # what an export is in until it is whole


@dataclass(frozen=True, slots=True)
class Listed:
    """A bundle as it is listed."""

    name: str  # what a command line takes for it
    path: Path
    manifest: Manifest | None  # None where it cannot be read
    problem: str  # why it cannot be used; empty if nothing is seen
    bytes: int  # of all its files
    used: str  # the last day; empty if that is not known


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An export that was stopped, and can be resumed."""

    name: str
    path: Path
    bytes: int


def look_at(path: Path, used: str = "") -> Listed:
    """Return what there is to know about a bundle, a damaged one included."""
    name = name_of(path) or str(path)
    try:
        raw = read_file(path / MANIFEST, BundleError, COPY_AGAIN, max_bytes=manifest.MAX_BYTES)
        found = Manifest.from_json(raw)
    except BundleError as error:
        return Listed(name, path, None, str(error), bytes_in(path), used)
    return Listed(name, path, found, _missing(path, found), len(raw) + sum(f.size for f in found.files.values()), used)


def all_bundles() -> list[Listed]:
    """Return the bundles of the models folder by name, then those elsewhere that were used, latest first."""
    days = {one.path: one.day for one in recent()}
    folder = models_folder()
    named = [] if folder is None else [folder / name for name in names_in(folder)]
    real = [real_path(path) for path in named]
    return [
        *(look_at(path, days.get(place, "")) for path, place in zip(named, real, strict=True)),
        *(look_at(path, day) for path, day in days.items() if path not in real),
    ]


def unfinished() -> list[Unfinished]:
    """Return the exports into the models folder that were stopped."""
    folder = models_folder()
    with contextlib.suppress(OSError):
        found = [] if folder is None else sorted(folder.glob(f".*{_PARTIAL}"))
        return [Unfinished(path.name[1 : -len(_PARTIAL)], path, bytes_in(path)) for path in found if path.is_dir()]
    return []


def numbers_of(listed: Listed) -> Mapping[str, object]:
    """Return a bundle as JSON has it, in a list."""
    found = listed.manifest
    return {
        "name": listed.name,
        "path": str(listed.path),
        "source": None if found is None else found.source,
        "recipe": None if found is None else found.recipe,
        "bytes": listed.bytes,
        "context": None if found is None else found.spec.max_position_embeddings,
        "pictures": found is not None and found.vision is not None,
        "used": listed.used or None,
        "problem": listed.problem or None,
    }


def _missing(path: Path, found: Manifest) -> str:
    for name, record in found.files.items():
        try:
            size = (path / name).stat().st_size
        except (OSError, ValueError):
            return f"{name} is missing; {COPY_AGAIN}"
        if size != record.size:
            return f"{name} has {size:,} bytes, the manifest says {record.size:,}; {COPY_AGAIN}"
    return ""
