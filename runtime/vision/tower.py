"""A bundle's picture tower: its graphs run one after the other, from patches to rows.

In: a bundle, an engine for its graphs, arrays by name. Out: rows (m, out_size) of one picture. Between two graphs, and
every second while one runs, there is news of the progress; whatever that raises ends the run. Knows nothing about
pixels, texts, or where rows are kept.

Graphs stay loaded for the next picture where memory allows; elsewhere, each is opened, run and let go of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from edge.runtime.arrays import Array, Hidden
from edge.runtime.bundle import VISION_BIN, Bundle
from edge.runtime.errors import EXPORT_AGAIN, BundleError, ClosedError, DeviceError
from edge.runtime.graph_names import HIDDEN
from edge.runtime.vision.native_runs import NativeRuns
from edge.runtime.vision.progress import OnPicture, PictureProgress, layers_done, seconds_left
from edge.runtime.vision.record import VisionRecord


class Segment(Protocol):
    """One graph, loaded. One call at a time; `end` comes from any thread."""

    @property
    def inputs(self) -> frozenset[str]:
        """Names of the arrays that it takes."""

    def run(self, arrays: Mapping[str, Array]) -> Hidden:
        """Return its only output, which is the caller's. Raises DeviceError, also where `end` ended it."""

    def end(self) -> None:
        """Make a run end soon, the present one or the next. It is not run again afterwards."""


class Graphs(Protocol):
    """An engine for graphs of a tower."""

    @property
    def identity(self) -> Mapping[str, str]:
        """What rows depend on besides the bundle. Raises DeviceError."""

    @property
    def value_bytes(self) -> int:
        """Of each activation. Raises DeviceError."""

    def open(self, path: Path, arrays: Mapping[str, Array]) -> Segment:
        """Load one graph, for arrays of these shapes, more of which it may not take. Raises DeviceError."""


_Shapes = Mapping[str, tuple[int, ...]]


class _News:
    """What is told while one graph runs."""

    def __init__(self, done: int, total: int, elapsed: float, on_progress: OnPicture | None) -> None:
        self._done, self._total, self._on_progress = done, total, on_progress
        self._left, self._began = seconds_left(elapsed, done, total), time.monotonic()

    def tell(self) -> None:
        if self._on_progress is not None:
            left = None if self._left is None else max(self._left - (time.monotonic() - self._began), 0.0)
            self._on_progress(PictureProgress(self._done, self._total, left))


class Tower:
    """The graphs of one bundle. `run` is for one thread at a time; `close` may come from any."""

    def __init__(
        self, bundle: Bundle, record: VisionRecord, graphs: Graphs, parts: list[Path], stays: Callable[[int], bool]
    ) -> None:
        """stays: whether graphs stay loaded after a picture with so many patches. Raises MemoryLimitError."""
        self._bundle, self._record, self._graphs, self._parts = bundle, record, graphs, parts
        self._stays = stays
        self._runs = NativeRuns()
        self._open: dict[int, tuple[_Shapes, Segment]] = {}  # and for which arrays each was loaded
        self._running: Segment | None = None
        self._closed = False

    @property
    def num_loaded(self) -> int:
        """How many graphs are loaded."""
        return len(self._open)

    def run(self, arrays: Mapping[str, Array], on_progress: OnPicture | None = None) -> Hidden:
        """Return the rows of one picture.

        arrays: of `preprocess.tower_inputs`. Raises BundleError, DeviceError, MemoryLimitError, ClosedError, and what
        `on_progress` raises. An interrupt acts within a second or two, and the tower can be used again.
        """
        total, began = self._record.spec.num_layers, time.monotonic()
        self._bundle.check_weights(self._bundle.recorded(VISION_BIN))
        stays = self._stays(next(iter(arrays.values())).shape[0])
        if not stays:
            self.let_go()
        given, rows = dict(arrays), None
        for index in range(len(self._parts)):
            news = _News(layers_done(index, len(self._parts), total), total, time.monotonic() - began, on_progress)
            news.tell()
            rows = given[HIDDEN] = self._run_part(index, given, news, stays=stays)
        assert rows is not None, "a tower has graphs"
        self._check_rows(rows)
        if on_progress is not None:
            on_progress(PictureProgress(total, total, 0.0))
        return rows

    def let_go(self) -> None:
        """Free what is loaded; the next run loads it again."""
        self._open.clear()

    def close(self) -> None:
        """Free everything, and end a run that another thread waits for: it raises ClosedError."""
        self._closed = True
        if (running := self._running) is not None:
            running.end()
        self.let_go()

    def _run_part(self, index: int, arrays: Mapping[str, Array], news: _News, *, stays: bool) -> Hidden:
        path = self._parts[index]

        def call() -> Hidden:
            shapes = {name: array.shape for name, array in arrays.items()}
            loaded_for, segment = self._open.get(index, (None, None))
            if segment is None or loaded_for != shapes:
                self._open.pop(index, None)  # before another takes as much
                segment = self._graphs.open(path, arrays)
            self._running = segment
            if ended or self._closed:  # while it was opened
                segment.end()
            if missing := sorted(segment.inputs - arrays.keys()):
                raise BundleError(f"{path} takes {', '.join(missing)}, which no picture has; {EXPORT_AGAIN}")
            found = segment.run({name: arrays[name] for name in segment.inputs})
            if stays and not ended and not self._closed:
                self._open[index] = (shapes, segment)
            return found

        def end() -> None:
            ended.append(True)
            if (running := self._running) is not None:
                running.end()

        ended: list[bool] = []
        if self._closed:
            raise _closed_error()
        try:
            return self._runs.run(call, end, news.tell)
        except BaseException as error:
            self._open.pop(index, None)  # the state that an engine keeps of this run cannot be trusted
            if self._closed and isinstance(error, DeviceError):
                raise _closed_error() from error
            raise
        finally:
            self._running = None
            if self._closed:
                self.let_go()

    def _check_rows(self, rows: Hidden) -> None:
        if rows.ndim != 2 or rows.shape[1] != self._record.spec.out_size:
            raise BundleError(
                f"{self._parts[-1]} gives {list(rows.shape)}, expected rows of {self._record.spec.out_size}; "
                f"{EXPORT_AGAIN}"
            )
        if not np.isfinite(rows).all():
            raise DeviceError(
                f"the picture became numbers that are not finite on {self._graphs.identity['engine']}; set "
                "inference_precision to f32, or use another engine or device"
            )


def _closed_error() -> ClosedError:
    return ClosedError("the model was closed while it read a picture; load it again")
