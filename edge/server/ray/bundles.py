"""Where the bundle is that every node opens: a path that all of them have, or one that each fetches once.

In: a path, and where to fetch it from where a node does not have it. Out: a folder on this node. Knows nothing about
models.

What is fetched is known by the sha256 of its manifest, which has the sha256 of every other file: who sends them does
not have to be trusted. A folder that is there is whole, as it is renamed when all of it is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from edge.runtime.bundle import MANIFEST, open_bundle
from edge.runtime.cache_folder import cache_folder
from edge.runtime.errors import BundleError, OutputError, UpdateError, telling_line
from edge.runtime.files import shown_path
from edge.runtime.locks import hold
from edge.runtime.manifest import MAX_BYTES, Manifest
from edge.server.ray.settings import SHELF
from edge.update.fetch import check_room, fetch
from edge.update.source import Source, open_source

PIECE_BYTES = 8 << 20
_WAIT_S = 3600.0  # for another process of this node, which fetches the same


@dataclass(frozen=True, slots=True)
class BundleSource:
    """A bundle as a cluster's nodes find it."""

    path: str
    fetch: str | None = None  # a folder with the bundle's files, by its URL or path, or SHELF
    sha256: str | None = None  # of the manifest, if it can be fetched
    shelf: ActorHandle[Any] | None = None  # of a Shelf; Any: Ray does not tell methods of such handles

    def here(self) -> Path:
        """Return the bundle's folder on this node. Raises BundleError, UpdateError and OutputError."""
        path = Path(self.path)
        if self.fetch is None or self.sha256 is None:
            return path
        if (path / MANIFEST).is_file() and sha256_of_manifest(path) == self.sha256:
            return path
        folder = cache_folder() / "fetched"
        found = folder / self.sha256
        folder.mkdir(parents=True, exist_ok=True)
        with hold(folder / f"{self.sha256}.lock", wait_s=_WAIT_S):
            if not found.is_dir():
                work = folder / f"{self.sha256}.incoming"
                for place in (found, work):
                    if os.path.lexists(place) and (place.is_symlink() or not place.is_dir()):
                        raise OutputError(f"{shown_path(place)} is in the way of a fetched bundle; move it away")
                self._fetched(found, work)
        return found

    def _fetched(self, found: Path, work: Path) -> None:
        """Fetch into a folder that gets its name when it is whole; the next attempt goes on with what it has."""
        source = source_of(self.fetch, self.shelf)
        raw = source.read(MANIFEST, MAX_BYTES)
        if hashlib.sha256(raw).hexdigest() != self.sha256:
            raise BundleError(f"{source}: the manifest is another than was asked for ({str(self.sha256)[:12]})")
        manifest = Manifest.from_json(raw)
        work.mkdir(exist_ok=True)
        check_room(found.parent, manifest, None, work)
        fetch(source, manifest, {MANIFEST: raw}, None, work, lambda _name, _size, _how: None)
        open_bundle(work)
        work.rename(found)


@dataclass(frozen=True, slots=True)
class ShelfSource:
    """A shelf as a source of files."""

    shelf: ActorHandle[Any]  # Any: as above

    def __str__(self) -> str:
        return "the machine that has the bundle"

    def read(self, name: str, max_bytes: int) -> bytes:
        content = b"".join(self._from(name, 0))
        if len(content) > max_bytes:
            raise UpdateError(f"{name} of {self} has more than {max_bytes:,} bytes, which no such file has")
        return content

    def parts(self, name: str, start: int, size: int) -> Iterator[bytes]:
        for part in self._from(name, start):
            start += len(part)
            if start > size:
                break
            yield part
        if start != size:
            raise UpdateError(f"{name} of {self} has another size than the manifest says; was it exported again?")

    def _from(self, name: str, start: int) -> Iterator[bytes]:
        try:
            while part := bytes(ray.get(self.shelf.read.remote(name, start))):
                start += len(part)
                yield part
        except ray.exceptions.RayError as error:
            raise UpdateError(f"{name} cannot be fetched from {self} ({telling_line(error)})") from error


class Shelf:
    """An actor on the machine that has the bundle, which hands its files out."""

    def __init__(self, path: str) -> None:
        self._bundle = open_bundle(path)

    def read(self, name: str, offset: int) -> bytes:
        """Return a piece of a recorded file or of the manifest; empty at its end."""
        if name != MANIFEST and name not in self._bundle.manifest.files:
            raise ValueError(f"{name} is no file of the bundle")
        with (self._bundle.path / name).open("rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)


def fetchable(path: str, given: str | None) -> BundleSource:
    """Return a bundle of this machine for a cluster that this process is in. given: a URL, SHELF, or None.

    Raises BundleError and SettingsError.
    """
    if given is None:
        return BundleSource(path)
    open_bundle(path)
    shelf: Any = None
    if given != SHELF:
        source_of(given, None)  # refused before anything is started
    else:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 4, "scheduling_strategy": here}  # Any: Ray's own
        shelf = ray.remote(Shelf).options(**options).remote(path)
    return BundleSource(path, given, sha256_of_manifest(Path(path)), shelf)


def source_of(given: str | None, shelf: ActorHandle[Any] | None) -> Source:  # Any: as above
    """Return what files are fetched from. Raises SettingsError."""
    assert given is not None
    return ShelfSource(shelf) if shelf is not None else open_source(given, None)


def sha256_of_manifest(folder: Path) -> str:
    """Return what a bundle is known by on a cluster."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
