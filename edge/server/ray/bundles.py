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
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from edge.runtime.bundle import MANIFEST, open_bundle
from edge.runtime.cache_folder import cache_folder
from edge.runtime.errors import BundleError, OutputError, telling_line
from edge.runtime.files import shown_path
from edge.runtime.locks import hold
from edge.runtime.manifest import MAX_BYTES, Manifest
from edge.server.ray.settings import SHELF

PIECE_BYTES = 8 << 20
_WAIT_S = 3600.0  # for another process of this node, which fetches the same


@dataclass(frozen=True, slots=True)
class BundleSource:
    """A bundle as a cluster's nodes find it."""

    path: str
    fetch: str | None = None  # the URL of a folder with the bundle's files, or SHELF
    sha256: str | None = None  # of the manifest, if it can be fetched
    shelf: ActorHandle[Any] | None = None  # of a Shelf; Any: Ray does not tell methods of such handles

    def here(self) -> Path:
        """Return the bundle's folder on this node. Raises BundleError and OutputError."""
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
                self._fetched(found)
        return found

    def _fetched(self, found: Path) -> None:
        """Fetch into a new folder, which gets its name when it is whole."""
        assert self.sha256 is not None
        with TemporaryDirectory(dir=found.parent, ignore_cleanup_errors=True) as work:
            new = Path(work) / "bundle"
            new.mkdir()
            self._fill(new)
            open_bundle(new)
            try:
                new.rename(found)
            except OSError as error:
                raise OutputError(f"{shown_path(found)} is in the way of a fetched bundle; move it away") from error

    def _fill(self, new: Path) -> None:
        assert self.sha256 is not None
        raw = b"".join(self._pieces(MANIFEST, MAX_BYTES))
        if hashlib.sha256(raw).hexdigest() != self.sha256:
            raise BundleError(f"{self.fetch}: the manifest is another than was asked for ({self.sha256[:12]})")
        for name, record in Manifest.from_json(raw).files.items():
            _store(new / name, self._pieces(name, record.size), record.sha256)
        _store(new / MANIFEST, iter([raw]), self.sha256)

    def _pieces(self, name: str, most: int) -> Iterator[bytes]:
        """Yield a file's content, and no more than it should be. Raises BundleError."""
        try:
            yield from self._from_shelf(name) if self.fetch == SHELF else self._from_url(name, most)
        except (OSError, URLError, ray.exceptions.RayError, ValueError) as error:
            raise BundleError(f"{name} cannot be fetched from {self.fetch} ({telling_line(error)})") from error

    def _from_url(self, name: str, most: int) -> Iterator[bytes]:
        assert self.fetch is not None
        if not self.fetch.startswith(("http://", "https://")):
            raise ValueError("expected a URL that begins with http:// or https://")
        with urlopen(f"{self.fetch.rstrip('/')}/{name}", timeout=60) as answer:
            left = most + 1
            while left > 0 and (piece := answer.read(min(PIECE_BYTES, left))):
                left -= len(piece)
                yield piece

    def _from_shelf(self, name: str) -> Iterator[bytes]:
        assert self.shelf is not None
        offset = 0
        while piece := bytes(ray.get(self.shelf.read.remote(name, offset))):
            offset += len(piece)
            yield piece


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


def fetchable(path: str, fetch: str | None) -> BundleSource:
    """Return a bundle of this machine for a cluster that this process is in. fetch: a URL, SHELF, or None.

    Raises BundleError.
    """
    if fetch is None:
        return BundleSource(path)
    open_bundle(path)
    shelf: Any = None
    if fetch == SHELF:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 4, "scheduling_strategy": here}  # Any: Ray's own
        shelf = ray.remote(Shelf).options(**options).remote(path)
    return BundleSource(path, fetch, sha256_of_manifest(Path(path)), shelf)


def sha256_of_manifest(folder: Path) -> str:
    """Return what a bundle is known by where it is fetched."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def _store(path: Path, pieces: Iterator[bytes], sha256: str) -> None:
    """Write a file to the disk. Raises BundleError if it is not the one that was meant."""
    hashed = hashlib.sha256()
    with path.open("xb") as file:
        for piece in pieces:
            hashed.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if hashed.hexdigest() != sha256:
        raise BundleError(f"{path.name} is another than the manifest says; is the source damaged?")
