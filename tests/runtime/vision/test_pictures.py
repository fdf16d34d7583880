"""Rows of pictures: computed once, found again by everything that they depend on, by any number of threads."""

from __future__ import annotations

import io
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.runtime.arrays import Hidden
from edge.runtime.bundle import Bundle
from edge.runtime.engines import memory_plan
from edge.runtime.engines.engine import EngineInfo
from edge.runtime.engines.memory_plan import within_memory
from edge.runtime.errors import BundleError, ClosedError, MemoryLimitError, PictureError
from edge.runtime.footprint import most_patches, tower_footprint
from edge.runtime.machine import MemoryLimit
from edge.runtime.messages import ImagePart
from edge.runtime.notices import LOGGER
from edge.runtime.settings import EngineSettings
from edge.runtime.vision import pictures, tower_memory
from edge.runtime.vision.pictures import Pictures, open_pictures
from edge.runtime.vision.progress import PictureProgress
from tests.runtime.vision.files import HEIGHT, WIDTH, plain
from tests.runtime.vision.towers import Weights, expected_rows, inputs_of, make_tower, picture_of, spec_of, weights_of

GB = 10**9
NEWS = [(0, False), (1, False), (2, False), (3, False)]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return weights_of(spec_of("eva"))


@pytest.fixture(scope="module")
def made(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> Bundle:
    return make_tower(tmp_path_factory.mktemp("eva") / "b", tiny_bundle, spec_of("eva"), weights)


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 64 * GB)


def limited(monkeypatch: pytest.MonkeyPatch, left: int, most: int | None = None) -> None:
    limit = MemoryLimit("this machine", 64 * GB, left, left if most is None else most)
    monkeypatch.setattr(tower_memory, "memory_limits", lambda: [limit])
    monkeypatch.setattr(tower_memory, "anonymous_bytes", lambda: GB)


def info(name: str = "onnx", device: str = "CPU") -> EngineInfo:
    return EngineInfo(name, device, 100, 10, 10, "f32", reproducible=False)


def opened(bundle: Bundle, folder: Path, engine: str = "onnx", **changes: object) -> Pictures:
    settings = EngineSettings(inference_precision="f32", kept_pictures_folder=folder)
    found = open_pictures(bundle, info(engine), replace(settings, **changes))  # type: ignore[arg-type]
    assert found is not None
    return found


def told(news: list[PictureProgress]) -> list[tuple[int, bool]]:
    """Without what is told again while a part runs on a slow machine."""
    return list(dict.fromkeys((one.done, one.kept) for one in news))


def test_a_text_model_has_none(made: Bundle) -> None:
    text = replace(made, manifest=replace(made.manifest, vision=None))
    assert open_pictures(text, info(), EngineSettings()) is None


def test_rows_are_computed_once_and_kept_ones_are_bit_equal(made: Bundle, tmp_path: Path, weights: Weights) -> None:
    first, news = opened(made, tmp_path), list[PictureProgress]()
    assert not first.is_kept(picture_of())
    rows = first.rows(picture_of(), news.append)
    assert told(news) == NEWS
    assert len(rows) == first.num_rows(picture_of()) == 18
    expected = expected_rows(first.spec, weights, inputs_of(first.spec))
    assert float(np.abs(rows - expected).max() / np.abs(expected).max()) < 3e-6  # as in test_tower
    for again in (first, opened(made, tmp_path)):  # from memory, and as another process would
        news.clear()
        assert again.is_kept(picture_of())
        found = again.rows(picture_of(), news.append)
        assert told(news) == [(3, True)]
        assert found.tobytes() == rows.tobytes()
    fresh = opened(made, tmp_path / "other").rows(picture_of())
    assert fresh.tobytes() == rows.tobytes()
    assert opened(made, tmp_path).rows(picture_of(1)).tobytes() != rows.tobytes()


def test_pictures_are_turned_unless_settings_say_not_to(made: Bundle, tmp_path: Path) -> None:
    part = ImagePart(data=plain("PNG", 6))  # on its side
    assert opened(made, tmp_path).open(part).pixels.shape[:2] == (WIDTH, HEIGHT)
    assert opened(made, tmp_path, turn_pictures=False).open(part).pixels.shape[:2] == (HEIGHT, WIDTH)


def test_nothing_is_written_when_it_is_off(made: Bundle, tmp_path: Path) -> None:
    one = opened(made, tmp_path, kept_pictures_bytes=0)
    one.rows(picture_of())
    assert one.is_kept(picture_of())
    assert list(tmp_path.iterdir()) == []


def test_keys_cover_pixels_tower_and_engine_and_nothing_else(made: Bundle, tmp_path: Path) -> None:
    record = made.manifest.vision
    assert record is not None
    files = dict(made.manifest.files)
    files["vision.bin"] = replace(files["vision.bin"], sha256="0" * 64)
    others = [
        opened(made, tmp_path, "openvino"),
        opened(made, tmp_path, "openvino", inference_precision="bf16"),
        opened(replace(made, manifest=replace(made.manifest, files=files)), tmp_path),
        opened(replace(made, manifest=replace(made.manifest, vision=replace(record, recipe="int4"))), tmp_path),
    ]
    keys = [one.key(picture_of()) for one in [opened(made, tmp_path), *others]]
    keys.append(opened(made, tmp_path).key(picture_of(1)))
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {32}
    same = opened(made, tmp_path / "elsewhere", max_context=10, threads=1)
    assert same.key(picture_of()) == keys[0]


def test_threads_that_ask_for_one_picture_run_the_tower_once(made: Bundle, tmp_path: Path) -> None:
    one, news = opened(made, tmp_path), list[list[PictureProgress]]()

    def ask() -> Hidden:
        mine: list[PictureProgress] = []
        news.append(mine)
        return one.rows(picture_of(), mine.append)

    with ThreadPoolExecutor(4) as threads:
        found = [future.result() for future in [threads.submit(ask) for _ in range(4)]]
    assert sorted(map(told, news)) == sorted([NEWS, *[[(3, True)]] * 3])
    assert len({rows.tobytes() for rows in found}) == 1


def test_who_waits_for_the_tower_is_told_and_may_leave(
    made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_ASK_EVERY_S", 0.02)
    one, began, waits = opened(made, tmp_path), threading.Event(), threading.Event()

    def hold(news: PictureProgress) -> None:
        began.set()
        if news.done == 1:
            assert waits.wait(30)

    def leave(news: PictureProgress) -> None:
        assert news == PictureProgress(0, 3, None)
        waits.set()
        raise LookupError("no longer wanted")

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(one.rows, picture_of(), hold)
        assert began.wait(30)
        with pytest.raises(LookupError, match="no longer wanted"):
            one.rows(picture_of(1), leave)
        assert len(running.result()) == 18


def test_a_run_that_ends_early_keeps_nothing(made: Bundle, tmp_path: Path) -> None:
    one = opened(made, tmp_path)

    def refuse(news: PictureProgress) -> None:
        if news.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.rows(picture_of(), refuse)
    assert not one.is_kept(picture_of())
    news: list[PictureProgress] = []
    one.rows(picture_of(), news.append)
    assert told(news) == NEWS


def test_after_closing_nothing_runs(made: Bundle, tmp_path: Path) -> None:
    one = opened(made, tmp_path)
    one.rows(picture_of())
    one.close()
    one.close()
    with pytest.raises(ClosedError, match="the model was closed; load it again"):
        one.rows(picture_of(1))
    assert "(closed)" in repr(one)


def test_a_part_is_decoded_once_until_its_file_changes(
    made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    def png(seed: int) -> bytes:
        out = io.BytesIO()
        Image.fromarray(picture_of(seed).pixels).save(out, "PNG")
        return out.getvalue()

    one, path = opened(made, tmp_path), tmp_path / "snap.png"
    path.write_bytes(png(0))
    first = one.open(ImagePart(path=path))
    assert first == picture_of(0)
    assert one.open(ImagePart(path=path)) is first
    path.unlink()
    path.write_bytes(png(1))
    assert one.open(ImagePart(path=path)) == picture_of(1)
    data = one.open(ImagePart(data=png(0)))
    assert one.open(ImagePart(data=png(0))) is data
    monkeypatch.setattr(pictures, "DECODED_BYTES", 1)
    one.open(ImagePart(data=png(2)))
    assert one.open(ImagePart(data=png(0))) is not data
    with pytest.raises(PictureError):
        one.open(ImagePart(path=tmp_path / "missing.png"))
    with pytest.raises(PictureError, match="holds no picture, expected a path or data"):
        one.open(ImagePart())


def test_the_tower_is_let_go_of_where_memory_is_short(
    made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    one = opened(made, tmp_path)
    first = one.rows(picture_of())
    assert one._tower is not None
    assert one._tower.num_loaded == 3
    limited(monkeypatch, 2 * GB)  # the KV cache may take more than that
    one.rows(picture_of(1))
    assert one._tower.num_loaded == 0
    assert opened(made, tmp_path / "other").rows(picture_of()).tobytes() == first.tobytes()


def test_what_cannot_fit_is_refused_before_anything_is_loaded(
    made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    one = opened(made, tmp_path)
    limited(monkeypatch, 1000, most=1000)
    with pytest.raises(MemoryLimitError, match=r"this picture takes .* part of the tower, .* to compute; 1.0 kB are f"):
        one.rows(picture_of())
    limited(monkeypatch, 1000, most=GB)
    one.rows(picture_of())
    (line,) = caplog.messages
    assert line.endswith("so it may become very slow, or be ended by the system")
    given = opened(made, tmp_path, max_memory_bytes=GB + 1)
    expected = r"with the 1\.00 GB that this process has already, that is more than max_memory_bytes, 1\.00 GB; raise"
    with pytest.raises(MemoryLimitError, match=expected):
        given.rows(picture_of(1))


def test_a_wrong_number_of_rows_is_refused(made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = opened(made, tmp_path)
    monkeypatch.setattr(one, "num_rows", lambda _picture: 99)
    with pytest.raises(BundleError, match="the tower gives 18 rows of a picture, expected 99; export the bundle again"):
        one.rows(picture_of())


def test_footprints_grow_with_the_picture_and_with_what_stays(made: Bundle) -> None:
    record = made.manifest.vision
    assert record is not None
    small, large = (tower_footprint(record, patches, engine="openvino") for patches in (100, 200))
    assert large.activations == 2 * small.activations
    assert small.part < small.parts
    assert small.least < small.whole
    assert tower_footprint(record, 100, engine="onnx").part > 0
    assert most_patches(record.spec) == 64
    assert most_patches(spec_of("glm4v")) == 256


def test_a_kv_cache_leaves_room_for_a_picture(made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    record = made.manifest.vision
    assert record is not None
    limit = MemoryLimit("this machine", 64 * GB, GB, GB)
    monkeypatch.setattr(memory_plan, "memory_limits", lambda: [limit])
    monkeypatch.setattr(memory_plan, "anonymous_bytes", lambda: 0)
    text = replace(made, manifest=replace(made.manifest, vision=None))
    caches = [within_memory(one, "onnx", 10**6, EngineSettings()).kv_cache_bytes for one in (text, made)]
    assert caches[0] - caches[1] == tower_footprint(record, most_patches(record.spec), engine="onnx").least
