"""The float model's log-probabilities: against transformers, against whole rows, and after being killed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from edge.export.plan import make_plan
from edge.export.settings import ExportSettings
from edge.export.tensors import FloatArray
from edge.export.text.windows import Windows
from edge.export.weights.source import WeightSource
from edge.profiles import reference, reference_file
from edge.profiles.accuracy import score
from edge.profiles.kept_rows import ReferenceSettings, Rows, keep
from edge.profiles.reference import build
from edge.profiles.reference_file import open_reference
from edge.runtime.errors import CalibrationError, OutputError, TensorError
from edge.runtime.spec import ModelSpec
from tests import tiny

WINDOWS = Windows(np.random.default_rng(3).integers(0, 256, (3, 24)), ("en", "zh", "en"))
ALL = ReferenceSettings(top=tiny.VOCAB)
SOME = ReferenceSettings(top=16, samples=8, first_scored=4)


@pytest.fixture(scope="module")
def weights(tiny_checkpoint: Path) -> WeightSource:
    return make_plan(tiny_checkpoint, ExportSettings("fp32")).weights


class Changed:
    """Weights that are read through a function."""

    def __init__(self, weights: WeightSource, change: Callable[[str], FloatArray]) -> None:
        self.spec: ModelSpec = weights.spec
        self.read = change


@pytest.mark.parametrize("case", [tiny.TINIES[1], tiny.TINIES[5]], ids=lambda case: case.name)
def test_whole_rows_are_those_of_transformers(case: tiny.Tiny, tmp_path: Path) -> None:
    model = tiny.make(case, tmp_path / "checkpoint")
    plan = make_plan(tmp_path / "checkpoint", ExportSettings("fp32"))
    found = build(plan.weights, WINDOWS, tmp_path / "reference.npz", key=plan.key, settings=ALL)
    assert found.rows.top_ids.shape == (3, 23, tiny.VOCAB)
    assert found.rows.sample_ids.shape == (3, 23, 0)
    losses = []
    for window, ids in enumerate(WINDOWS.ids):
        logits, rounding = tiny.reference_logits(model, ids.tolist())
        expected = log_softmax(logits[:-1])
        # Log-probabilities are differences of two logits, and ours round in another order: twice two roundings.
        bound = 4 * rounding + 1e-6
        ours = found.rows[window]
        assert np.abs(ours.top_logprobs - np.take_along_axis(expected, ours.top_ids.astype(int), 1)).max() < bound
        assert (np.sort(ours.top_ids, axis=1) == np.arange(tiny.VOCAB)).all()
        assert (np.diff(ours.top_logprobs, axis=1) <= 0).all()
        of_next = np.take_along_axis(expected, ids[1:, None], 1)
        assert np.abs(ours.next_logprobs - of_next[:, 0]).max() < bound
        place = np.argmax(ours.top_ids == ids[1:, None], axis=1)
        assert (ours.next_ranks == place).all()
        losses.append(of_next)
    assert found.ppl == pytest.approx(np.exp(-np.mean(losses)), rel=bound)


def test_a_part_of_each_row_is_that_part_of_the_whole(weights: WeightSource, tmp_path: Path) -> None:
    whole = build(weights, WINDOWS, tmp_path / "all.npz", key="a", settings=ALL)
    some = build(weights, WINDOWS, tmp_path / "some.npz", key="a", settings=SOME)
    assert some.scored == 19
    assert some.rows.tail.shape == (3, 19)
    rows = whole.rows[:, SOME.first_scored :]
    assert (some.rows.top_ids == rows.top_ids[..., :16]).all()
    np.testing.assert_allclose(some.rows.top_logprobs, rows.top_logprobs[..., :16], atol=1e-6)
    np.testing.assert_allclose(some.rows.tail, np.exp(rows.top_logprobs[..., 16:]).sum(-1), rtol=1e-4)
    assert not (some.rows.sample_ids[..., None] == some.rows.top_ids[..., None, :]).any()
    assert (some.rows.next_ranks == rows.next_ranks).all()


def test_samples_estimate_the_divergence_of_whole_rows_within_the_stated_error() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (300, 2000)).astype(np.float32)
    other = logits + rng.normal(0, 1, logits.shape).astype(np.float32)
    following = rng.integers(0, 2000, 300)
    p, q = log_softmax(logits), log_softmax(other)
    whole = (np.exp(p) * (p - q)).sum(axis=1)
    deviations = []
    for seed in range(20):
        kept = keep(logits, following, 16, 32, [seed])
        kld, variance, *_ = score(other, following, kept)
        deviations.append((kld.mean() - whole.mean()) / (np.sqrt(variance.sum()) / 300))
    # Independent and about normal with variance 1 where the estimate has no bias and its error is what it says.
    assert np.abs(deviations).max() < 4
    assert abs(np.mean(deviations)) < 4 / np.sqrt(20)
    assert 0.3 < np.mean(np.square(deviations)) < 2.5  # chi-square with 20 degrees of freedom: 0.27 to 2.4 at 1e-3.
    assert np.abs(whole).mean() > 100 * np.sqrt(variance.sum()) / 300  # and it is a small one


def test_rows_that_are_equal_have_no_divergence_and_no_error() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (50, 2000)).astype(np.float32)
    following = np.argmax(logits, axis=1)
    kept = keep(logits, following, 16, 32, [0])
    kld, variance, _, log_ratio, change, top1, top5 = score(logits, following, kept)
    for zero in (kld, log_ratio, change):
        assert np.abs(zero).max() < 1e-6  # log-probabilities are kept in float32
    assert variance.max() < 1e-12
    assert top1.all()
    assert top5.all()
    assert (kept.next_ranks == 0).all()


@pytest.fixture(scope="module")
def fresh(weights: WeightSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference that was computed without a break."""
    path = tmp_path_factory.mktemp("reference") / "fresh.npz"
    build(weights, WINDOWS, path, key="a", settings=SOME)
    return path


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    weights: WeightSource, fresh: Path, tmp_path: Path, stop: int
) -> None:
    """Steps: the embedding, three blocks, three windows."""
    steps: list[str] = []

    def kill(stage: str, done: int, total: int) -> None:
        assert total == 7
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(weights, WINDOWS, tmp_path / "resumed.npz", key="a", settings=SOME, progress=kill)
    assert not (tmp_path / "resumed.npz").exists()
    read: list[str] = []

    def watched(name: str) -> FloatArray:
        read.append(name)
        return weights.read(name)

    build(
        Changed(weights, watched),
        WINDOWS,
        tmp_path / "resumed.npz",
        key="a",
        settings=SOME,
        progress=lambda stage, done, _total: steps.append(f"{done} {stage}"),
    )
    assert (tmp_path / "resumed.npz").read_bytes() == fresh.read_bytes()
    everything = ["1 embedding", "2 block 0", "3 block 1", "4 block 2", "5 head", "6 head", "7 head"]
    assert steps == everything[stop:]
    assert not any(name.startswith(f"layers.{layer}.") for name in read for layer in range(stop - 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed.npz"]


def test_a_killed_run_of_something_else_is_not_used(weights: WeightSource, fresh: Path, tmp_path: Path) -> None:
    expected = open_reference(fresh)

    def kill(stage: str, done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    for key, windows, settings in (
        ("b", WINDOWS, SOME),
        ("a", Windows(WINDOWS.ids[::-1], WINDOWS.languages), SOME),
    ):
        with pytest.raises(KeyboardInterrupt):
            build(weights, windows, tmp_path / "other.npz", key=key, settings=settings, progress=kill)
        found = build(weights, WINDOWS, tmp_path / "other.npz", key="a", settings=SOME)
        assert same(found.rows, expected.rows)
        (tmp_path / "other.npz").unlink()


def test_what_is_there_already_is_read_and_what_is_another_is_replaced(
    weights: WeightSource, fresh: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(fresh, tmp_path))
    first = open_reference(path)

    def refuse(name: str) -> FloatArray:
        raise AssertionError(f"{name} is read")

    again = build(Changed(weights, refuse), WINDOWS, path, key="a", settings=SOME)
    assert same(again.rows, first.rows)
    assert (again.key, again.settings, again.vocab_size) == (first.key, SOME, tiny.VOCAB)
    assert again.windows.languages == WINDOWS.languages
    other = build(weights, WINDOWS, path, key="b", settings=SOME)
    assert other.key != first.key
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(OutputError, match="not a whole reference"):  # cut off: not even a zip file
        build(weights, WINDOWS, path, key="b", settings=SOME)


@pytest.mark.parametrize(
    ("name", "stop", "left"), [("hidden-*.npy", 3, 0), ("window-0.npz", 6, 1), ("journal.json", 3, 0)]
)
def test_altered_work_is_done_again(
    name: str, stop: int, left: int, weights: WeightSource, fresh: Path, tmp_path: Path
) -> None:
    """left: how many windows need no head again."""

    def kill(stage: str, done: int, total: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    out = tmp_path / "resumed.npz"
    with pytest.raises(KeyboardInterrupt):
        build(weights, WINDOWS, out, key="a", settings=SOME, progress=kill)
    (path,) = (tmp_path / ".resumed.npz.partial" / "journal").glob(name)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    steps: list[str] = []
    build(weights, WINDOWS, out, key="a", settings=SOME, progress=lambda stage, *_: steps.append(stage))
    assert out.read_bytes() == fresh.read_bytes()
    assert steps.count("head") == 3 - left
    assert ("embedding" in steps) == (left == 0)


def test_a_full_disk_keeps_the_work(
    weights: WeightSource, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "resumed.npz"
    with monkeypatch.context() as patch:
        patch.setattr(reference, "assemble", full)
        with pytest.raises(OutputError, match=r"free some space; what is done is kept in .*/\.resumed\.npz\.partial"):
            build(weights, WINDOWS, out, key="a", settings=SOME)
    steps: list[str] = []
    build(weights, WINDOWS, out, key="a", settings=SOME, progress=lambda stage, *_: steps.append(stage))
    assert steps == []
    assert out.read_bytes() == fresh.read_bytes()


def test_something_else_in_place_of_the_work_folder_stays(weights: WeightSource, tmp_path: Path) -> None:
    work = tmp_path / ".a.npz.partial"
    work.mkdir()
    (work / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"is in the way: 'thesis\.txt' was not made by this version"):
        build(weights, WINDOWS, tmp_path / "a.npz", key="a", settings=SOME)
    assert (work / "thesis.txt").read_text() == "mine"


def test_an_archive_of_others_that_appears_meanwhile_stays(weights: WeightSource, tmp_path: Path) -> None:
    out = tmp_path / "a.npz"

    def appear(stage: str, _done: int, _total: int) -> None:
        np.savez(out, mine=np.arange(3))

    with pytest.raises(OutputError, match="appeared meanwhile"):
        build(weights, WINDOWS, out, key="a", settings=SOME, progress=appear)
    with np.load(out) as archive:
        assert archive.files == ["mine"]
    with pytest.raises(OutputError, match="not a whole reference"):
        build(weights, WINDOWS, out, key="a", settings=SOME)
    with np.load(out) as archive:
        assert archive.files == ["mine"]


def test_changed_weights_are_what_is_run(weights: WeightSource, fresh: Path, tmp_path: Path) -> None:
    def swapped(name: str) -> FloatArray:
        swap = {"layers.0.": "layers.1.", "layers.1.": "layers.0."}
        return weights.read(swap.get(name[:9], name[:9]) + name[9:])

    usual = open_reference(fresh)
    changed = build(Changed(weights, swapped), WINDOWS, tmp_path / "b.npz", key="a swapped", settings=SOME)
    assert np.abs(usual.rows.next_logprobs - changed.rows.next_logprobs).mean() > 0.1


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_a_damaged_file_is_refused(fresh: Path, tmp_path: Path, place: float) -> None:
    path = Path(shutil.copy(fresh, tmp_path))
    whole = bytearray(path.read_bytes())
    whole[int(place * len(whole))] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CalibrationError, match="does not read as a reference"):
        open_reference(path)


def test_files_of_others_stay(weights: WeightSource, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("mine")
    with pytest.raises(OutputError, match="not a whole reference"):
        build(weights, WINDOWS, path, key="a", settings=SOME)
    assert path.read_text() == "mine"
    for wrong in (path, tmp_path / "absent", tmp_path, Path("/dev/zero"), Path("x" * 300), Path("a\0b")):
        with pytest.raises(CalibrationError, match=r"not read as a reference|cannot be read|not an ordinary file"):
            open_reference(wrong)
    with pytest.raises(OutputError, match="cannot be written"):
        build(weights, WINDOWS, path / "below", key="a", settings=SOME)


def test_settings_and_windows_that_do_not_fit_are_refused(weights: WeightSource, tmp_path: Path) -> None:
    def refused(message: str, windows: Windows = WINDOWS, **settings: int) -> None:
        with pytest.raises(CalibrationError, match=message):
            build(weights, windows, tmp_path / "a.npz", key="a", settings=ReferenceSettings(**{"top": 16, **settings}))

    refused("first_scored is 23 in windows of 24 tokens, expected 0 to 22", first_scored=23)
    refused("first_scored is -1", first_scored=-1)
    refused("top is 321", top=321)
    refused("top is 4", top=4)
    refused("samples 0", samples=0)
    refused("windows of 300 tokens, the model takes 256", Windows(np.zeros((1, 300), np.int64), ("en",)))
    refused("token 320 is in the windows", Windows(np.full((1, 9), 320), ("en",)))
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_refused(weights: WeightSource, tmp_path: Path) -> None:
    broken = Changed(weights, lambda name: weights.read(name) * np.float32("nan" if "norm" in name else 1))
    with pytest.raises(TensorError, match="NaN"):
        build(broken, WINDOWS, tmp_path / "a.npz", key="a", settings=SOME)
    assert not list(tmp_path.iterdir())


def test_the_key_knows_the_versions(
    monkeypatch: pytest.MonkeyPatch, weights: WeightSource, fresh: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(fresh, tmp_path))
    monkeypatch.setattr(reference_file, "version", lambda name: "0")
    assert build(weights, WINDOWS, path, key="a", settings=SOME).key != open_reference(fresh).key


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def same(a: Rows, b: Rows) -> bool:
    return all(np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(Rows))
