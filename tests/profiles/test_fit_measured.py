"""What follows from measured pairs: constants that made them are found again, and other files are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.profiles.fit.figures import Figure, factor_between, fitted_terms, left_out
from edge.profiles.fit.measured import (
    Measured,
    MeasuredPair,
    decode_factor,
    fitted,
    left_out_of,
    memory_factor,
    ready_factor,
    stored,
    stored_rates,
    ttft_factor,
    worst,
)
from edge.runtime.errors import ProfileError

PACKED, EFFICIENCY, CACHE, FLOPS, LOAD_RATE, LOAD_S = 0.4, 0.6, 0.1, 3e11, 5e8, 0.7


def pair(weight_bytes: int, cache: int, bits: int = 4, bandwidth: float = 40.0) -> MeasuredPair:
    """A pair of an engine that is exactly as the formulas have it."""
    packed = 0 if bits == 8 else weight_bytes * 3 // 4
    seconds = (packed / PACKED + (weight_bytes - packed) / EFFICIENCY + cache / CACHE) / (bandwidth * 1e9)
    work = 2e3 * weight_bytes
    return MeasuredPair(
        model=f"{weight_bytes}",
        engine="onnx",
        recipe="int4-asym-g128",
        kv_precision="f32",
        context_tokens=1000,
        bits=bits,
        weight_bytes=weight_bytes,
        packed_bytes=packed,
        kv_read_bytes=cache,
        bandwidth_gbs=bandwidth,
        operations=work,
        load_s=weight_bytes / LOAD_RATE,
        first_token_s=LOAD_S,
        ttft_s=work / FLOPS,
        decode_tok_s=1 / seconds,
        peak_bytes=1100,
        resident_bytes=1000,
        predicted_peak_bytes=1000,
        predicted_resident_bytes=1000,
    )


PAIRS = (
    pair(10**8, 3 * 10**7),
    pair(10**9, 10**8, bandwidth=30.0),
    pair(5 * 10**8, 10**6, 8),
    pair(3 * 10**9, 2 * 10**8, bandwidth=50.0),
    pair(2 * 10**9, 4 * 10**7, 8),
    pair(7 * 10**8, 2 * 10**6, bandwidth=20.0),
    pair(10**9, 3 * 10**8, 8, bandwidth=30.0),
)
MEASURED = Measured("a machine", 2, 40.0, 0.1, "2026-11-29", {"edgeglm": "1"}, PAIRS)


def test_constants_that_made_the_pairs_are_found_again() -> None:
    rates = fitted("onnx", PAIRS)
    assert rates.packed_efficiency == pytest.approx(PACKED)
    assert rates.efficiency == pytest.approx(EFFICIENCY)
    assert rates.cache_efficiency == pytest.approx(CACHE)
    assert rates.load_bytes_s == pytest.approx(LOAD_RATE)
    assert rates.load_s == pytest.approx(LOAD_S)
    assert rates.prefill_flops == {4: pytest.approx(FLOPS), 8: pytest.approx(FLOPS)}


def test_each_pair_follows_from_the_others() -> None:
    for one in left_out_of(MEASURED):
        assert one.decode_tok_s == pytest.approx(one.pair.decode_tok_s)
        assert one.ttft_s == pytest.approx(one.pair.ttft_s)
        assert one.ready_s == pytest.approx(one.pair.ready_s)
        assert one.memory_error == pytest.approx(-1 / 11)
        assert one.resident_error == 0


def test_a_pair_is_not_predicted_by_itself() -> None:
    """One pair that is three times as fast as the formula stays far off; if it were fitted to, it would not be."""
    odd = replace(PAIRS[4], decode_tok_s=3 * PAIRS[4].decode_tok_s)
    found = left_out_of(replace(MEASURED, pairs=(*PAIRS[:4], odd, *PAIRS[5:])))
    assert found[4].decode_factor == pytest.approx(3)


def test_few_pairs_are_refused() -> None:
    with pytest.raises(ProfileError, match="2 measured pairs of onnx, expected 3"):
        fitted("onnx", PAIRS[:2])
    with pytest.raises(ProfileError, match="0 measured pairs of openvino"):
        fitted("openvino", PAIRS)


def test_the_record_comes_back_from_its_text() -> None:
    assert Measured.from_json(MEASURED.to_json()) == MEASURED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decode_tok_s", 0),
        ("decode_tok_s", -1.0),
        ("decode_tok_s", "fast"),
        ("bits", 1.5),
        ("bits", None),
        ("peak_bytes", True),
        ("model", "a\nb"),
        ("engine", 7),
    ],
)
def test_what_is_no_record_is_refused(name: str, value: object) -> None:
    data = json.loads(MEASURED.to_json())
    data["pairs"][0][name] = value
    with pytest.raises(ProfileError, match=name):
        Measured.from_json(json.dumps(data))
    del data["pairs"][0][name]
    with pytest.raises(ProfileError, match=name):
        Measured.from_json(json.dumps(data))


def test_what_ships_has_both_engines_and_enough_pairs() -> None:
    found = stored()
    assert len(found.pairs) >= 8
    assert {one.engine for one in found.pairs} == {"onnx", "openvino"}
    assert len({one.model for one in found.pairs}) >= 3
    assert len({one.recipe for one in found.pairs}) >= 3
    assert len({one.context_tokens for one in found.pairs}) >= 3
    for engine in ("onnx", "openvino"):
        rates = stored_rates(engine)
        assert rates.efficiency > 0
        assert rates.packed_efficiency > 0
        for factor in (decode_factor, ttft_factor, ready_factor, memory_factor):
            assert worst(engine, factor) >= 1
        assert worst(engine, memory_factor) <= 1.1, "memory does not depend on how busy the machine was"


# --- Figures ----------------------------------------------------------------------------------------------------------

POSITIVE = st.floats(1e-6, 1e9)


@given(st.lists(POSITIVE, min_size=2, max_size=3), st.data())
def test_terms_are_found_again_and_never_negative(factors: list[float], data: st.DataObject) -> None:
    """What is found explains rows that are sums of terms, even where they are too few to tell which terms those are."""
    count = len(factors)
    rows = data.draw(st.lists(st.lists(POSITIVE, min_size=count, max_size=count), min_size=count, max_size=6))
    wanted = [sum(factor * term for factor, term in zip(factors, row, strict=True)) for row in rows]
    found = fitted_terms(rows, wanted)
    assert all(value >= 0 for value in found)
    for row, sought in zip(rows, wanted, strict=True):
        assert sum(factor * term for factor, term in zip(found, row, strict=True)) == pytest.approx(sought, rel=1e-3)


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=6), st.data())
def test_terms_of_noise_are_never_negative(rows: list[tuple[float, float]], data: st.DataObject) -> None:
    wanted = data.draw(st.lists(POSITIVE, min_size=len(rows), max_size=len(rows)))
    assert all(0 <= value < float("inf") for value in fitted_terms(rows, wanted))


@given(st.lists(POSITIVE, min_size=2, max_size=8))
def test_the_worst_of_those_left_out_is_at_least_one(values: list[float]) -> None:
    assert left_out(values) >= 1
    assert left_out([values[0]] * len(values)) == 1


@given(POSITIVE, st.floats(1, 100))
def test_a_figure_is_within_its_own_error(value: float, factor: float) -> None:
    figure = Figure(value, factor, "a test")
    assert figure.low <= value <= figure.high
    assert factor_between(figure.high, value) == pytest.approx(factor)
    assert ("factor" in figure.error) == (factor > 1.5)


def test_errors_in_words() -> None:
    assert Figure(1, 1.25, "").error == "±25 %"
    assert Figure(1, 2.44, "").error == "a factor of 2.4"
    assert Figure(1, 3, "", about=True).error == "about; a factor of 3.0"
    assert left_out([7.0]) == 2
