"""The tower's graphs run as numpy says, on both engines; runs that end early leave it usable."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.runtime.arrays import Array, Hidden
from edge.runtime.bundle import VISION_BIN, Bundle
from edge.runtime.errors import BundleError, ClosedError, DeviceError
from edge.runtime.settings import EngineSettings
from edge.runtime.vision import native_runs
from edge.runtime.vision.pictures import BundleFormat, choose_graphs
from edge.runtime.vision.preprocess import tower_inputs
from edge.runtime.vision.progress import PictureProgress
from edge.runtime.vision.tower import Tower
from edge.runtime.vision.tower_onnx import OnnxGraphs
from tests.runtime.vision.towers import (
    Weights,
    expected_rows,
    inputs_of,
    make_tower,
    picture_of,
    spec_of,
    weights_of,
)

FORMATS: tuple[BundleFormat, ...] = ("openvino", "onnx")
EXACT = EngineSettings(inference_precision="f32")
# A few hundred roundings of 6e-8 each in three layers and the adapter, which add up by chance: 1e-6 of the largest.
CLOSE = 3e-6


@pytest.fixture(scope="module")
def weights() -> Weights:
    return weights_of(spec_of("eva"))


@pytest.fixture(scope="module")
def made(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> Bundle:
    return make_tower(tmp_path_factory.mktemp("eva") / "b", tiny_bundle, spec_of("eva"), weights)


def tower_of(bundle: Bundle, kind: BundleFormat = "onnx", *, stays: bool = True) -> Tower:
    record = bundle.manifest.vision
    assert record is not None
    return Tower(bundle, record, *choose_graphs(bundle, record, EXACT, kind), lambda _patches: stays)


def off(rows: Hidden, expected: Hidden) -> float:
    return float(np.abs(rows - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_are_those_of_numpy(kind: BundleFormat, made: Bundle, weights: Weights) -> None:
    spec = spec_of("eva")
    arrays = inputs_of(spec)
    expected = expected_rows(spec, weights, arrays)
    for stays in (True, False):
        tower = tower_of(made, kind, stays=stays)
        first, again = tower.run(arrays), tower.run(arrays)
        assert first.shape == (spec.side**2 // 4 + 2, spec.out_size)
        assert off(first, expected) < CLOSE
        np.testing.assert_array_equal(again, first)
        assert tower.num_loaded == (3 if stays else 0)


@pytest.mark.parametrize("kind", FORMATS)
def test_pictures_of_any_size_take_turns(kind: BundleFormat, tiny_bundle: Path, tmp_path: Path) -> None:
    spec = spec_of("glm4v")
    weights = weights_of(spec)
    tower = tower_of(make_tower(tmp_path / "b", tiny_bundle, spec, weights, (kind,), segments=2), kind)
    for width, height in ((40, 28), (64, 16), (40, 28), (30, 60)):
        arrays = tower_inputs(picture_of(0, width, height), spec)
        assert off(tower.run(arrays), expected_rows(spec, weights, arrays)) < CLOSE


@pytest.mark.parametrize("kind", FORMATS)
def test_arrays_may_be_read_only_or_in_any_order(kind: BundleFormat, made: Bundle, weights: Weights) -> None:
    """Copies are made of such arrays, which have to last as long as the run."""
    arrays = inputs_of(spec_of("eva"))
    patches = np.asfortranarray(arrays["patches"])
    patches.flags.writeable = False
    found = tower_of(made, kind).run({**arrays, "patches": patches})
    assert off(found, expected_rows(spec_of("eva"), weights, arrays)) < CLOSE


def test_progress_is_told_between_parts(made: Bundle) -> None:
    told: list[PictureProgress] = []
    tower_of(made).run(inputs_of(spec_of("eva")), told.append)
    parts = {news.done: news for news in reversed(told)}  # the first of each: on a slow machine, there are more
    assert sorted(parts) == [0, 1, 2, 3]
    assert {(news.total, news.kept) for news in told} == {(3, False)}
    assert parts[0].seconds_left is None
    assert all(news.seconds_left is not None and news.seconds_left > 0 for news in (parts[1], parts[2]))
    assert told[-1] == PictureProgress(3, 3, 0.0)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_what_the_news_raises_ends_the_run_and_the_next_one_is_right(at: int, made: Bundle, weights: Weights) -> None:
    def refuse(news: PictureProgress) -> None:
        if news.done == at:
            raise LookupError("enough")

    tower, arrays = tower_of(made), inputs_of(spec_of("eva"))
    with pytest.raises(LookupError, match="enough"):
        tower.run(arrays, refuse)
    assert tower.num_loaded == at
    assert off(tower.run(arrays), expected_rows(spec_of("eva"), weights, arrays)) < CLOSE


def test_altered_weights_are_refused_before_they_are_used(tiny_bundle: Path, tmp_path: Path, weights: Weights) -> None:
    bundle = make_tower(tmp_path / "b", tiny_bundle, spec_of("eva"), weights, ("onnx",))
    path = bundle.path / VISION_BIN
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"vision\.bin is altered \(its sha256 differs from the manifest\)"):
        tower_of(bundle).run(inputs_of(spec_of("eva")))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_graph_that_does_not_read_is_told(kind: BundleFormat, tiny_bundle: Path, tmp_path: Path) -> None:
    spec = spec_of("eva")
    bundle = make_tower(tmp_path / "b", tiny_bundle, spec, weights_of(spec), (kind,))
    bundle.vision_parts(kind)[1].write_bytes(b"not a graph")
    with pytest.raises(DeviceError, match=r"vision\.1\..*run edge verify"):
        tower_of(bundle, kind).run(inputs_of(spec))


def test_a_bundle_without_all_its_graphs_is_refused(made: Bundle, tiny_bundle: Path) -> None:
    record = made.manifest.vision
    assert record is not None
    with pytest.raises(BundleError, match="holds 3 graphs of its picture tower, expected 4; export the bundle again"):
        choose_graphs(made, replace(record, segments=4), EXACT, "onnx")
    with pytest.raises(BundleError, match="holds no graphs of its picture tower"):
        choose_graphs(replace(made, manifest=replace(made.manifest, files={})), record, EXACT, "onnx")
    files = {name: file for name, file in made.manifest.files.items() if not name.endswith(".xml")}
    only_onnx = replace(made, manifest=replace(made.manifest, files=files))
    assert isinstance(choose_graphs(only_onnx, record, EXACT, "openvino")[0], OnnxGraphs)


def test_rows_that_are_not_finite_are_refused(tiny_bundle: Path, tmp_path: Path, weights: Weights) -> None:
    broken = {**weights, "vision.begin": np.full_like(weights["vision.begin"], np.nan)}
    bundle = make_tower(tmp_path / "b", tiny_bundle, spec_of("eva"), broken, ("onnx",))
    with pytest.raises(DeviceError, match="numbers that are not finite on onnx; set inference_precision to f32"):
        tower_of(bundle).run(inputs_of(spec_of("eva")))


class Slow:
    """A part that takes until it is told to end."""

    inputs = frozenset({"patches"})

    def __init__(self) -> None:
        self.started, self._ended = threading.Event(), threading.Event()

    def run(self, arrays: Mapping[str, Array]) -> Hidden:
        self.started.set()
        if not self._ended.wait(120):
            return arrays["patches"]
        raise DeviceError("it was told to end")

    def end(self) -> None:
        self._ended.set()


class SlowGraphs:
    """Whose first graph is slow once."""

    value_bytes = 4

    def __init__(self, inner: OnnxGraphs) -> None:
        self.slow, self._inner, self._first = Slow(), inner, True
        self.identity = inner.identity

    def open(self, path: Path, arrays: Mapping[str, Array]) -> object:
        if self._first:
            self._first = False
            return self.slow
        return self._inner.open(path, arrays)


def slow_tower(bundle: Bundle) -> tuple[Tower, SlowGraphs]:
    record = bundle.manifest.vision
    assert record is not None
    graphs = SlowGraphs(OnnxGraphs(EXACT))
    return Tower(bundle, record, graphs, bundle.vision_parts("onnx"), lambda _patches: True), graphs  # type: ignore[arg-type]


def after(event: threading.Event, act: Callable[[], None]) -> None:
    def wait() -> None:
        event.wait(30)
        act()

    threading.Thread(target=wait).start()


@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
def test_an_interrupt_acts_while_a_part_runs_and_the_next_run_is_right(made: Bundle, weights: Weights) -> None:
    tower, graphs = slow_tower(made)
    arrays = inputs_of(spec_of("eva"))
    after(graphs.slow.started, lambda: os.kill(os.getpid(), signal.SIGINT))
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        tower.run(arrays)
    assert time.monotonic() - began < 100  # the part itself would take 120
    assert off(tower.run(arrays), expected_rows(spec_of("eva"), weights, arrays)) < CLOSE


def test_news_come_while_a_part_runs_and_may_end_it(
    made: Bundle, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_runs, "_TICK_S", 0.02)
    monkeypatch.setattr(native_runs, "_ASK_EVERY_S", 0.01)
    tower, _ = slow_tower(made)
    told: list[PictureProgress] = []

    def leave(news: PictureProgress) -> None:
        told.append(news)
        if len(told) == 3:
            raise LookupError("no longer wanted")

    arrays = inputs_of(spec_of("eva"))
    with pytest.raises(LookupError, match="no longer wanted"):
        tower.run(arrays, leave)
    assert told == [PictureProgress(0, 3, None)] * 3
    assert off(tower.run(arrays), expected_rows(spec_of("eva"), weights, arrays)) < CLOSE


def test_closing_ends_a_run_in_another_thread(made: Bundle) -> None:
    tower, graphs = slow_tower(made)
    after(graphs.slow.started, tower.close)
    with pytest.raises(ClosedError, match="the model was closed while it read a picture"):
        tower.run(inputs_of(spec_of("eva")))
    assert tower.num_loaded == 0
    with pytest.raises(ClosedError):
        tower.run(inputs_of(spec_of("eva")))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_part_that_was_told_to_end_does(kind: BundleFormat, made: Bundle) -> None:
    record = made.manifest.vision
    assert record is not None
    graphs, parts = choose_graphs(made, record, EXACT, kind)
    segment = graphs.open(parts[0], inputs_of(spec_of("eva")))
    segment.end()
    with pytest.raises(DeviceError, match="the engine failed at a picture"):
        segment.run(inputs_of(spec_of("eva")))
