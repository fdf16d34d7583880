"""Golden rows: a divergence from few numbers is nearly that from all, and self_test.npz is believed only so far."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.runtime.differences import kl_divergence
from edge.runtime.engines.engine import EngineInfo
from edge.runtime.errors import BundleError
from edge.runtime.golden_rows import MAX_TOKENS, TOP, GoldenRows, read_golden_rows, top_logits
from edge.runtime.self_test_bounds import EXACT, bound_of, noises_of
from edge.runtime.settings import EngineSettings

VOCAB, ROWS = 320, 8
LOGITS = np.random.default_rng(0).normal(0, 4, (ROWS, VOCAB)).astype(np.float32)
FOUND = top_logits(LOGITS)
ARRAYS: dict[str, npt.NDArray[Any]] = {
    "ids": np.arange(ROWS),
    "top_ids": FOUND.ids,
    "top_logits": FOUND.logits,
    "rest": FOUND.rest,
    "kld_bf16": np.full(ROWS, 0.25, np.float32),
}


def npz(**changes: npt.NDArray[Any] | None) -> bytes:
    arrays = {name: array for name, array in (ARRAYS | changes).items() if array is not None}
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=True, **arrays)
    return stream.getvalue()


@given(st.integers(0, 1000), st.floats(0.001, 3), st.sampled_from([2, 10, VOCAB]))
def test_divergence_of_few_logits_is_a_lower_bound(seed: int, noise: float, vocab: int) -> None:
    """Putting everything else together can only hide; where nothing is hidden, it is the divergence of all logits."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (3, vocab)).astype(np.float32)
    other = (logits + rng.normal(0, noise, logits.shape)).astype(np.float32)
    few = float(top_logits(logits).kl_divergences(other).mean())
    whole = kl_divergence(logits, other)
    assert -1e-9 <= few <= whole + 1e-5 * max(whole, 1)
    if vocab <= TOP:
        assert few == pytest.approx(whole, rel=1e-3, abs=1e-6)


def test_the_largest_logits_are_kept_in_order() -> None:
    assert FOUND.ids.shape == (ROWS, TOP)
    np.testing.assert_array_equal(FOUND.logits, -np.sort(-LOGITS)[:, :TOP])
    np.testing.assert_array_equal(np.take_along_axis(LOGITS, FOUND.ids, -1), FOUND.logits)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_has_no_divergence(value: float) -> None:
    changed = LOGITS.copy()
    changed[3, 7] = value
    assert np.isnan(FOUND.kl_divergences(changed)).tolist() == [row == 3 for row in range(ROWS)]


def test_one_certain_token() -> None:
    """Everything else weighs nothing, whose logarithm is a number all the same."""
    certain = np.where(np.arange(100) == 5, 2000, -2000)[None].astype(np.float32)
    assert top_logits(certain).kl_divergences(certain)[0] == pytest.approx(0)
    assert top_logits(certain).kl_divergences(-certain)[0] > 1000


def test_what_export_writes_is_read() -> None:
    golden = read_golden_rows(npz(), VOCAB)
    np.testing.assert_array_equal(golden.ids, ARRAYS["ids"])
    np.testing.assert_array_equal(golden.top.logits, ARRAYS["top_logits"])
    assert {name: values.tolist() for name, values in golden.divergences.items()} == {"bf16": [0.25] * ROWS}
    assert golden.top.kl_divergences(LOGITS).max() < 1e-9


TWICE = FOUND.ids.copy()
TWICE[2, 1] = TWICE[2, 0]
WRONG = {
    "empty": b"",
    "cut off": npz()[:-30],
    "no ids": npz(ids=None),
    "no rest": npz(rest=None),
    "objects": npz(ids=np.array([{}] * ROWS, object)),
    "ids outside the vocabulary": npz(ids=np.full(ROWS, VOCAB)),
    "negative ids": npz(top_ids=FOUND.ids - VOCAB),
    "no tokens": npz(**{name: array[:0] for name, array in ARRAYS.items()}),
    "more ids than any text": npz(ids=np.zeros(2 * MAX_TOKENS, np.int64)),
    "rows of another number": npz(rest=FOUND.rest[1:]),
    "logits of another shape": npz(top_logits=FOUND.logits[:, 1:]),
    "divergences of another number": npz(kld_bf16=np.zeros(3, np.float32)),
    "rest of two dims": npz(rest=FOUND.rest[None]),
    "NaN": npz(top_logits=np.full_like(FOUND.logits, np.nan)),
    "infinity": npz(rest=np.full_like(FOUND.rest, np.inf)),
    "a negative divergence": npz(kld_bf16=np.full(ROWS, -1, np.float32)),
    "an infinite divergence": npz(kld_bf16=np.full(ROWS, np.inf, np.float32)),
    "half floats": npz(rest=FOUND.rest.astype(np.float16)),
    "a token twice": npz(top_ids=TWICE),
}


@pytest.mark.parametrize("raw", WRONG.values(), ids=WRONG.keys())
def test_what_is_none_is_one_line(raw: bytes) -> None:
    with pytest.raises(BundleError, match=r"self_test\.npz [^\n]*; export the bundle again$"):
        read_golden_rows(raw, VOCAB)


def info(device: str = "CPU", kv_precision: Any = "f32") -> EngineInfo:
    return EngineInfo("any", device, 64, 64, 1, kv_precision, reproducible=False)


def said(precision: str, group: int) -> dict[str, str]:
    return {"inference precision": precision, "group of rounded activations": str(group)}


@pytest.mark.parametrize(
    ("engine", "identity", "settings", "noises"),
    [
        (info(), {"activations": "f32"}, {}, ()),
        (info(), {"activations": "int8"}, {}, ("int8",)),
        (info(kv_precision="f16"), {"activations": "int8"}, {}, ("int8", "f16")),
        (info(), said("f32", 0), {}, ()),
        (info(kv_precision="bf16"), said("bf16", 32), {}, ("bf16", "int8")),
        (info(kv_precision="u8"), said("bf16", 0), {}, ("bf16", "kv8")),
        (info(kv_precision="u4"), said("f32", 0), {}, ("kv4",)),
        (info(kv_precision="f16"), {"inference precision": "the device's own"}, {}, ("bf16", "f16", "int8")),
        (info(), {"inference precision": "f32"}, {"dynamic_quantization_group": 0}, ()),
        (info("GPU.0", "u8"), said("f16", 0), {}, ("bf16", "f16", "kv8")),
        (info("NPU", "f16"), {}, {}, ("bf16", "f16", "int8")),
    ],
)  # fmt: skip
def test_what_an_engine_rounds(
    engine: EngineInfo, identity: dict[str, str], settings: dict[str, Any], noises: tuple[str, ...]
) -> None:
    assert noises_of(engine, identity, EngineSettings(**settings)) == noises


def test_a_bound_is_three_times_what_was_emulated() -> None:
    divergences = {"bf16": np.array([1.0, 2, 3, 4]), "int8": np.array([10.0, 0, 0, 0]), "kv8": np.full(4, 0.01)}
    golden = GoldenRows(np.arange(4), top_logits(LOGITS[:4]), divergences)
    every, last = slice(0, 4), slice(2, 4)
    assert bound_of(golden, (), every) == EXACT
    assert bound_of(golden, ("bf16",), every) == pytest.approx(7.5)
    assert bound_of(golden, ("bf16", "int8"), every) == pytest.approx(15)
    assert bound_of(golden, ("bf16", "int8"), last) == pytest.approx(10.5), "of the rows that are compared"
    assert bound_of(golden, ("kv4",), every) == pytest.approx(0.03 * 289)
    assert bound_of(golden, ("bf16", "f16"), every) is None, "which overflowed"
