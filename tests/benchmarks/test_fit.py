"""The measurement of `edge fit`'s errors: what it runs, and what it calls met."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fit import PAIRS, met, rows
from fit_worker import Job, work

from edge.profiles.fit.measured import LeftOut, left_out_of
from tests.profiles.test_fit_measured import MEASURED


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_worker_measures(tiny_bundle: Path, engine: str) -> None:
    found = work(Job(str(tiny_bundle), engine, 40, 3))
    assert all(value for value in found.values())
    assert float(found["ttft_s"]) > 0
    assert float(found["peak_rss_bytes"]) > 1e6


def test_pairs_differ_in_all_that_is_asked_for() -> None:
    for names in ({p.engine for p in PAIRS}, {p.model for p in PAIRS}, {p.recipe for p in PAIRS}):
        assert len(names) >= 2
    assert len({pair.name for pair in PAIRS}) == len(PAIRS) >= 8
    assert len({pair.prompt_tokens for pair in PAIRS}) >= 3


def test_what_is_met() -> None:
    one = left_out_of(MEASURED)[0]
    assert met(one)
    assert not met(replace(one, decode_tok_s=one.decode_tok_s * 1.26))
    assert met(replace(one, decode_tok_s=one.decode_tok_s * 1.24))
    assert not met(replace(one, decode_tok_s=one.decode_tok_s / 1.26))
    assert not met(more_memory(one, 1.11))
    assert not met(more_memory(one, 0.89))
    assert [row["met"] for row in rows([one, more_memory(one, 2)])] == ["yes", "NO"]


def more_memory(one: LeftOut, times: float) -> LeftOut:
    return replace(one, pair=replace(one.pair, predicted_peak_bytes=int(one.pair.peak_bytes * times)))
