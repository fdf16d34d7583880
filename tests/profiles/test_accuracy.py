"""How far a bundle is from its float checkpoint: against whole rows in float64, and between settings."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from edge.export.pipeline import export
from edge.export.plan import make_plan
from edge.export.settings import ExportSettings
from edge.export.tensors import FloatArray
from edge.export.text.windows import Windows
from edge.export.weights.source import WeightSource
from edge.profiles.accuracy import Accuracy, compare, evaluate
from edge.profiles.kept_rows import ReferenceSettings
from edge.profiles.reference import build
from edge.profiles.reference_file import Reference
from edge.runtime.bundle import open_bundle
from edge.runtime.engines.choice import open_engine
from edge.runtime.engines.engine import Engine
from edge.runtime.errors import CalibrationError, ContextLengthError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.settings import EngineSettings
from tests import tiny
from tests.conftest import EXACT

WINDOWS = Windows(np.random.default_rng(5).integers(0, 256, (5, 48)), ("en", "zh", "en", "zh", "en"))
ALL = ReferenceSettings(top=tiny.VOCAB)
SOME = ReferenceSettings(top=16, samples=32)


@pytest.fixture(scope="module")
def weights(tiny_checkpoint: Path) -> WeightSource:
    return make_plan(tiny_checkpoint, ExportSettings("fp32")).weights


@pytest.fixture(scope="module")
def whole(weights: WeightSource, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A reference that keeps every log-probability of each row."""
    return build(weights, WINDOWS, tmp_path_factory.mktemp("whole") / "reference.npz", key="a", settings=ALL)


@pytest.fixture(scope="module")
def some(weights: WeightSource, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return build(weights, WINDOWS, tmp_path_factory.mktemp("some") / "reference.npz", key="a", settings=SOME)


@pytest.fixture(scope="module")
def float_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("float") / "bundle"
    export(tiny_checkpoint, out, "fp32")
    return out


@pytest.fixture(scope="module")
def int4(int4_bundle: Path) -> Engine:
    return open_engine(open_bundle(int4_bundle), EXACT["openvino"])


def test_the_float_model_is_no_distance_from_itself(float_bundle: Path, engine: str, some: Reference) -> None:
    found = evaluate(open_engine(open_bundle(float_bundle), EXACT[engine]), some)
    # Divergence is quadratic in what float32 rounds; what rounding the kept log-probabilities adds averages out.
    assert abs(found.kld) < 1e-6
    assert found.ppl_ratio == pytest.approx(1, abs=1e-5)
    assert found.top1 == found.top5 == 1
    assert found.probability_change_rms < 1e-5
    assert (found.engine, found.windows, found.tokens) == (engine, 5, 5 * 47)


def test_figures_are_those_of_whole_rows_in_float64(int4: Engine, whole: Reference, some: Reference) -> None:
    logits = one_by_one(int4, WINDOWS)
    p, q, following = full(whole), log_softmax(logits), WINDOWS.ids[:, 1:, None]
    kld = (np.exp(p) * (p - q)).sum(axis=-1)
    of_p, of_q = (np.take_along_axis(x, following, -1)[..., 0] for x in (p, q))
    best = p.argmax(axis=-1)
    first_five = np.sort(q, axis=-1)[..., -5]
    found = evaluate(int4, whole, chunk=7)
    assert found.kld > 0.01
    for value, expected in (
        (found.kld, kld.mean()),
        (found.kld_stderr, np.std(kld.mean(axis=1), ddof=1) / math.sqrt(5)),
        (found.kld_median, np.median(kld)),
        (found.kld_p99, np.quantile(kld, 0.99)),
        (found.ppl, np.exp(-of_q.mean())),
        (found.reference_ppl, np.exp(-of_p.mean())),
        (found.ppl_ratio, np.exp(-of_q.mean()) / np.exp(-of_p.mean())),
        (found.ppl_ratio_stderr, found.ppl_ratio * np.std((of_p - of_q).mean(axis=1), ddof=1) / math.sqrt(5)),
        (found.top1, np.mean(q.argmax(axis=-1) == best)),
        (found.top5, np.mean(np.take_along_axis(q, best[..., None], -1)[..., 0] >= first_five)),
        (found.probability_change, np.mean(np.exp(of_q) - np.exp(of_p))),
        (found.probability_change_rms, np.sqrt(np.mean(np.square(np.exp(of_q) - np.exp(of_p))))),
        (found.per_window_kld, kld.mean(axis=1)),
        (found.per_window_log_ratio, (of_p - of_q).mean(axis=1)),
        (found.kld_storage_stderr, 0.0),
    ):
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-6)  # chunks of 7 and rows alone round differently
    chinese, quarter = found.languages[1], found.quarters[3]
    assert (chinese.name, chinese.tokens, quarter.name, quarter.tokens) == ("zh", 2 * 47, "quarter 4", 5 * 11)
    assert chinese.kld == pytest.approx(kld[[1, 3]].mean(), rel=1e-4)
    assert quarter.kld == pytest.approx(kld[:, 36:].mean(), rel=1e-4)
    assert quarter.ppl_ratio == pytest.approx(np.exp((of_p - of_q)[:, 36:].mean()), rel=1e-4)
    assert chinese.top1 == np.mean(q[[1, 3]].argmax(axis=-1) == best[[1, 3]])

    sampled = evaluate(int4, some, chunk=7)
    assert 0 < abs(sampled.kld - found.kld) < 4 * sampled.kld_storage_stderr
    assert sampled.kld_storage_stderr < 0.05 * found.kld
    assert (sampled.top1, sampled.top5) == (found.top1, found.top5)
    assert sampled.ppl == found.ppl


def test_chunks_and_windows_at_once_change_nothing_where_the_engine_is_exact(
    int4_bundle: Path, engine: str, some: Reference
) -> None:
    loaded = open_engine(open_bundle(int4_bundle), EXACT[engine])
    free = loaded.pool.num_free
    usual = evaluate(loaded, some)
    for chunk, at_once in ((1, 2), (5, 3), (48, 1), (1000, None)):
        other = evaluate(loaded, some, chunk=chunk, at_once=at_once)
        np.testing.assert_allclose(other.per_window_kld, usual.per_window_kld, rtol=1e-4)
        np.testing.assert_allclose(other.per_window_log_ratio, usual.per_window_log_ratio, rtol=1e-3, atol=1e-5)
        assert other.top1 == usual.top1
    assert loaded.pool.num_free == free


def test_the_cache_takes_part(int4_bundle: Path, some: Reference) -> None:
    settings = dataclasses.replace(EXACT["openvino"], kv_precision="u4")
    coarse = open_engine(open_bundle(int4_bundle), settings)
    exact = open_engine(open_bundle(int4_bundle), EXACT["openvino"])
    added = compare(evaluate(exact, some), evaluate(coarse, some)).kld
    assert added.mean > 1e-3
    assert added.p < 0.05, "five windows"


def test_rows_before_the_first_scored_are_only_context(int4: Engine, weights: WeightSource, tmp_path: Path) -> None:
    settings = dataclasses.replace(ALL, first_scored=24)
    half = build(weights, WINDOWS, tmp_path / "reference.npz", key="a", settings=settings)
    found = evaluate(int4, half, chunk=10)
    q, p = log_softmax(one_by_one(int4, WINDOWS)), full(half)
    kld = (np.exp(p) * (p - q[:, 24:])).sum(axis=-1)
    assert found.tokens == 5 * 23
    assert found.per_window_kld == pytest.approx(kld.mean(axis=1), rel=1e-4)


def test_two_layers_that_changed_places_are_seen(
    int4: Engine, some: Reference, weights: WeightSource, tmp_path: Path
) -> None:
    class Swapped:
        spec = weights.spec

        def read(self, name: str) -> FloatArray:
            swap = {"layers.0.": "layers.1.", "layers.1.": "layers.0."}
            return weights.read(swap.get(name[:9], name[:9]) + name[9:])

    swapped = build(Swapped(), WINDOWS, tmp_path / "reference.npz", key="swapped", settings=SOME)
    right, wrong = evaluate(int4, some), evaluate(int4, swapped)
    assert wrong.kld > right.kld + 10 * (wrong.kld_stderr or math.inf)
    with pytest.raises(CalibrationError, match="cannot be paired"):
        compare(right, wrong)


def test_differences_are_paired_by_window(int4: Engine, some: Reference) -> None:
    a = evaluate(int4, some)
    same = compare(a, a).kld
    assert (same.mean, same.z, same.p) == (0, 0, 1)
    # Windows differ by 1, and each pair by 0.1 +- 0.01: plain in pairs, drowned in the windows' own spread otherwise.
    a = dataclasses.replace(a, per_window_kld=(1.0, 2.0, 3.0, 4.0, 5.0))
    b = dataclasses.replace(a, per_window_kld=(1.09, 2.1, 3.11, 4.1, 5.1))
    found = compare(a, b).kld
    stderr = math.sqrt(0.0002 / 4 / 5)
    assert (found.mean, found.stderr, found.z) == pytest.approx((0.1, stderr, 0.1 / stderr))
    assert found.p < 1e-4
    assert compare(b, a).kld.mean == -found.mean
    noise = dataclasses.replace(a, per_window_kld=(1.1, 1.9, 3.1, 3.9, 5.1))
    found = compare(a, noise).kld
    # Of Student's t with 4 degrees of freedom (closed form; Abramowitz and Stegun 26.7.4).
    share = 1 / (1 + found.z**2 / 4)
    within = math.sqrt(1 - share) * (1 + share / 2)
    assert found.p == pytest.approx(1 - within)
    assert found.p > 0.5
    with pytest.raises(CalibrationError, match="one window"):
        compare(dataclasses.replace(a, windows=1), a)


def test_figures_survive_json(int4: Engine, some: Reference) -> None:
    found = evaluate(int4, some)
    assert Accuracy.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    known = found.to_json()
    damaged: list[object] = [{}, [], {**known, "format": 0}, {**known, "languages": [{"name": "en"}]}]
    for wrong in damaged:
        with pytest.raises(CalibrationError, match="measure again"):
            Accuracy.from_json(wrong)


def test_one_window_has_no_error(int4: Engine, weights: WeightSource, tmp_path: Path) -> None:
    one = Windows(WINDOWS.ids[:1], ("en",))
    found = evaluate(int4, build(weights, one, tmp_path / "reference.npz", key="a", settings=SOME))
    assert found.kld_stderr is found.ppl_ratio_stderr is found.languages[0].kld_stderr is None


def test_what_does_not_fit_is_refused_and_leaves_no_tokens_behind(
    int4_bundle: Path, int4: Engine, some: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = open_engine(open_bundle(int4_bundle), EngineSettings("openvino", max_context=32))
    with pytest.raises(ContextLengthError, match="windows of 48 tokens"):
        evaluate(short, some)
    with pytest.raises(CalibrationError, match="vocabulary of 320"):
        evaluate(int4, dataclasses.replace(some, vocab_size=321))
    with pytest.raises(CalibrationError, match="chunk is 0"):
        evaluate(int4, some, chunk=0)

    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    free = int4.pool.num_free
    with pytest.raises(KeyboardInterrupt):
        evaluate(int4, some, progress=fail)
    assert int4.pool.num_free == free


def one_by_one(engine: Engine, windows: Windows) -> np.ndarray:
    """(n, length - 1, vocab) logits, token by token."""
    rows = []
    for ids in windows.ids:
        sequence = CacheSequence(engine.pool)
        rows.append([engine.forward(ids[i : i + 1], sequence, np.array([0]))[0].copy() for i in range(ids.size - 1)])
        sequence.free()
    return np.array(rows)


def full(reference: Reference) -> np.ndarray:
    """(n, R, vocab) log-probabilities of a reference that has them all."""
    rows = reference.rows
    found = np.empty(rows.top_logprobs.shape)
    np.put_along_axis(found, rows.top_ids.astype(int), rows.top_logprobs.astype(np.float64), -1)
    return found


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found
