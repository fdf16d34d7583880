"""Pictures of a loaded model: from a part of a message to rows for the text engine.

In: parts of messages. Out: decoded pictures, their keys, and their rows, from the tower or from where they are kept.
Any number of threads may ask; one picture at a time goes through the tower. Knows nothing about prompts.

A key covers all that rows depend on: pixels, the tower's files, how it is run. Equal keys therefore mean equal rows, up
to what processors and numbers of threads round differently, and rows that are kept are used bit by bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge.runtime.arrays import Array, Hidden
from edge.runtime.bundle import VISION_BIN, Bundle
from edge.runtime.engines.engine import EngineInfo
from edge.runtime.errors import EXPORT_AGAIN, BundleError, ClosedError, PictureError, shown
from edge.runtime.extras import check_installed
from edge.runtime.footprint import tower_footprint
from edge.runtime.machine import available_bytes, family_of
from edge.runtime.messages import ImagePart
from edge.runtime.settings import EngineSettings
from edge.runtime.vision.kept_rows import KeptRows
from edge.runtime.vision.progress import OnPicture, PictureProgress
from edge.runtime.vision.record import VisionRecord
from edge.runtime.vision.spec import VisionSpec
from edge.runtime.vision.tower import Graphs, Tower
from edge.runtime.vision.tower_memory import check_room, stays_loaded

if TYPE_CHECKING:
    from edge.runtime.vision.picture import Picture, PictureSettings

DECODED_BYTES = 128 << 20  # of pictures that stay decoded; the latest one does in any case
MOST_KEYS = 10_000  # that are remembered
_VERSION = "1"  # of what becomes of pixels before the tower
_ASK_EVERY_S = 1.0  # whoever waits for the tower, whether to wait on

BundleFormat = Literal["openvino", "onnx"]
_PACKAGES: dict[BundleFormat, str] = {"openvino": "openvino", "onnx": "onnxruntime"}


def open_pictures(
    bundle: Bundle, info: EngineInfo, settings: EngineSettings, pictures: PictureSettings | None = None
) -> Pictures | None:
    """Return what makes rows of pictures; None for a model that sees none. Loads and reads nothing yet.

    info: of the text engine, whose package and device the tower uses, too, if the bundle has graphs for it.
    """
    if bundle.manifest.vision is None:
        return None
    device = info.device if family_of(info.device) == "GPU" else "CPU"
    usual: BundleFormat = "onnx" if info.name == "onnx" else "openvino"
    return Pictures(bundle, bundle.manifest.vision, replace(settings, device=device), usual, pictures)


class Pictures:
    """The pictures of one loaded model."""

    def __init__(
        self,
        bundle: Bundle,
        record: VisionRecord,
        settings: EngineSettings,
        usual: BundleFormat,
        pictures: PictureSettings | None = None,
    ) -> None:
        """Use `open_pictures`. usual: the graphs that are taken if the bundle has both kinds."""
        self._bundle, self._record, self._settings, self._pictures = bundle, record, settings, pictures
        self._usual: BundleFormat = usual
        self._decoded: OrderedDict[object, Picture] = OrderedDict()
        self._keys: dict[str, bytes] = {}
        self._rows = KeptRows(settings.kept_pictures_folder, settings.kept_pictures_bytes)
        self._tower: Tower | None = None
        self._graphs: tuple[Graphs, list[Path]] | None = None
        self._short = threading.Lock()  # of all that is here, for moments
        self._free = threading.Condition(self._short)
        self._turn: object | None = None  # who has the tower, for minutes
        self._closed = False

    def __repr__(self) -> str:
        return (
            f"<Pictures {self._bundle.path.name}: {self.spec.kind}, {self._record.recipe}{' (closed)' * self._closed}>"
        )

    @property
    def spec(self) -> VisionSpec:
        return self._record.spec

    def open(self, part: ImagePart) -> Picture:
        """Decode a part's picture, unless that was done lately. Raises PictureError and MissingPackageError."""
        from edge.runtime.vision.decode import open_picture
        from edge.runtime.vision.picture import PictureSettings

        source, stamp = _source(part)
        with self._short:
            found = None if stamp is None else self._decoded.get(stamp)
        if found is None:
            how = self._pictures or PictureSettings(orientation=self._settings.turn_pictures)
            found = open_picture(source, how)
        if stamp is not None:
            with self._short:
                self._decoded[stamp] = found
                self._decoded.move_to_end(stamp)
                while len(self._decoded) > 1 and sum(p.pixels.nbytes for p in self._decoded.values()) > DECODED_BYTES:
                    self._decoded.popitem(last=False)
        return found

    def key(self, picture: Picture) -> bytes:
        """Return 32 bytes that rows are kept under. Raises BundleError, DeviceError and MissingPackageError."""
        with self._short:
            if picture.sha256 not in self._keys:
                if len(self._keys) == MOST_KEYS:
                    self._keys.clear()
                graphs, parts = self._chosen()
                files = {
                    name: self._bundle.manifest.files[name].sha256 for name in [VISION_BIN, *(p.name for p in parts)]
                }
                covered = {
                    "version": _VERSION,
                    "picture": picture.sha256,
                    "files": files,
                    "spec": self.spec.to_json(),
                    "recipe": self._record.recipe,
                    "engine": dict(graphs.identity),
                }
                self._keys[picture.sha256] = hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).digest()
            return self._keys[picture.sha256]

    def num_rows(self, picture: Picture) -> int:
        """Return how many rows a text gets for a picture. Raises PictureError for sides that it cannot have."""
        from edge.runtime.vision.geometry import grid_of, num_rows

        return num_rows(grid_of(picture.width, picture.height, self.spec), self.spec)

    def is_kept(self, picture: Picture) -> bool:
        """Whether the rows of a picture are there without a run of the tower. Raises as `key`."""
        return self.kept(picture) is not None

    def kept(self, picture: Picture) -> Hidden | None:
        """Return a picture's rows if they are kept; the tower never runs. Raises as `key`, never for a file."""
        key, shape = self.key(picture), (self.num_rows(picture), self.spec.out_size)
        with self._short:
            return self._rows.find(key, shape)

    def rows(self, picture: Picture, on_progress: OnPicture | None = None) -> Hidden:
        """Return a picture's rows, (m, out_size), read-only: kept ones, or those that the tower computes now.

        on_progress: told before the first layer, between parts of the tower and at the end, and about every second
        while another picture is in the tower. What it raises ends the run. Raises BundleError, DeviceError,
        MemoryLimitError, ClosedError, PictureError and MissingPackageError.
        """
        self._check_open()
        if (found := self._told_kept(picture, on_progress)) is not None:
            return found
        turn = object()
        try:
            self._take(turn, on_progress)
            if (found := self._told_kept(picture, on_progress)) is not None:  # while waiting
                return found
            return self._computed(picture, on_progress)
        finally:
            with self._short:
                if self._turn is turn:
                    self._turn = None
                    self._free.notify_all()

    def close(self) -> None:
        """Free the tower and what is in memory, and end a run in another thread. A second call changes nothing."""
        self._closed = True
        if (tower := self._tower) is not None:
            tower.close()
        with self._short:
            self._decoded.clear()
            self._rows.clear()
            self._graphs = None

    def _told_kept(self, picture: Picture, on_progress: OnPicture | None) -> Hidden | None:
        found = self.kept(picture)
        if found is not None and on_progress is not None:
            on_progress(PictureProgress(self.spec.num_layers, self.spec.num_layers, 0.0, kept=True))
        return found

    def _take(self, turn: object, on_progress: OnPicture | None) -> None:
        """Wait for the tower. The caller gives the turn back, whatever line an interrupt ended this at."""
        while True:
            with self._short:
                if self._turn is None or self._free.wait_for(lambda: self._turn is None, _ASK_EVERY_S):
                    self._turn = turn
                    break
            self._check_open()
            if on_progress is not None:
                on_progress(PictureProgress(0, self.spec.num_layers, None))
        self._check_open()

    def _computed(self, picture: Picture, on_progress: OnPicture | None) -> Hidden:
        from edge.runtime.vision.preprocess import tower_inputs

        rows = self._opened_tower().run(tower_inputs(picture, self.spec), on_progress)
        expected = self.num_rows(picture)
        if len(rows) != expected:
            raise BundleError(f"the tower gives {len(rows)} rows of a picture, expected {expected}; {EXPORT_AGAIN}")
        key = self.key(picture)
        with self._short:
            self._rows.keep(key, rows)
        return rows

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the model was closed; load it again")

    def _opened_tower(self) -> Tower:
        with self._short:
            if self._tower is None:
                graphs, parts = self._chosen()
                self._tower = Tower(self._bundle, self._record, graphs, parts, self._stays)
            return self._tower

    def _stays(self, patches: int) -> bool:
        """Whether the tower stays loaded after a picture. Raises MemoryLimitError."""
        graphs, parts = self._chosen()
        engine = graphs.identity["engine"]
        needs = tower_footprint(self._record, patches, engine=engine, value_bytes=graphs.value_bytes)
        share = 0 if self._tower is None else self._tower.num_loaded / len(parts)
        loaded, settings = int(share * needs.parts), self._settings
        check_room(needs, settings, loaded, any_size=not self.spec.is_fixed)
        if settings.kv_cache_share is not None:
            cache = int(settings.kv_cache_share * (available_bytes() or 0))
            settings = replace(settings, kv_cache_bytes=max(cache, 1))
        return stays_loaded(needs, settings, loaded)

    def _chosen(self) -> tuple[Graphs, list[Path]]:
        if self._graphs is None:
            self._check_open()
            self._graphs = choose_graphs(self._bundle, self._record, self._settings, self._usual)
        return self._graphs


def run_alone(
    bundle: Bundle, record: VisionRecord, engine: str, settings: EngineSettings, arrays: Mapping[str, Array]
) -> Hidden:
    """Return what the tower makes of its inputs, with nothing kept. Raises as `Pictures.rows`."""
    graphs, parts = choose_graphs(bundle, record, settings, "onnx" if engine == "onnx" else "openvino")
    tower = Tower(bundle, record, graphs, parts, lambda _patches: False)
    try:
        return tower.run(arrays)
    finally:
        tower.close()


def choose_graphs(
    bundle: Bundle, record: VisionRecord, settings: EngineSettings, usual: BundleFormat
) -> tuple[Graphs, list[Path]]:
    """Return the engine and the graphs of a tower: those of the usual kind, or else those that there are.

    Raises BundleError and MissingPackageError.
    """
    kinds: tuple[BundleFormat, ...] = (usual, "onnx" if usual == "openvino" else "openvino")
    found = {kind: parts for kind in kinds if (parts := bundle.vision_parts(kind))}
    if not found:
        raise BundleError(f"{bundle.path} holds no graphs of its picture tower; {EXPORT_AGAIN}")
    kind = next(iter(found))
    if len(found[kind]) != record.segments:
        raise BundleError(
            f"{bundle.path} holds {len(found[kind])} graphs of its picture tower, expected {record.segments}; "
            f"{EXPORT_AGAIN}"
        )
    check_installed(_PACKAGES[kind], needed=kind)
    if kind == "onnx":
        from edge.runtime.vision.tower_onnx import OnnxGraphs

        return OnnxGraphs(settings), found[kind]
    from edge.runtime.vision.tower_openvino import OpenVINOGraphs

    return OpenVINOGraphs(settings.device, settings), found[kind]


def _source(part: ImagePart) -> tuple[Path | bytes, object]:
    """Return where a part's picture is, and what tells whether that is the same later; None where nothing does."""
    if part.data is not None:
        return part.data, hashlib.sha256(part.data).digest()
    if part.path is None:
        raise PictureError(f"{shown(part)} holds no picture, expected a path or data")
    try:
        status = part.path.stat()
    except (OSError, ValueError):  # told in words by whoever opens it
        return part.path, None
    absolute = os.path.abspath(part.path)  # noqa: PTH100  (a path's own would fail on a zero byte)
    return part.path, (absolute, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
