"""The table of step costs: what it says of steps in between, and which files it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from edge.profiles.fleet.step_costs import Cell, Gap, MeasuredSteps, find_table, from_json, stored, to_json
from edge.runtime.errors import ProfileError


def cell(count: int, past: int, ms: float) -> Cell:
    return Cell(count, past, ms, ms, ms, 3)


def gap(clients: int, servers: int, ms: float) -> Gap:
    return Gap(clients, servers, 100, ms, ms, ms, 3)


# Decode: 10 ms and 2 more for an answer, 0.01 for each token behind it. Reading: 1 ms a token.
TABLE = MeasuredSteps(
    model="tiny",
    recipe="int8-asym",
    engine="openvino",
    threads=1,
    machine="a machine",
    date="2026-11-30",
    command="a command",
    versions={"openvino": "1"},
    chunk=128,
    block=16,
    blocks=100,
    decode=tuple(cell(n, past, 10 + 2 * n + 0.01 * n * past) for n in (1, 4, 8) for past in (0, 500)),
    first=tuple(cell(n, past, 14 + 2 * n + 0.01 * n * past) for n in (1, 8) for past in (0, 500)),
    prefill=tuple(cell(n, past, n + 0.001 * n * past) for n in (1, 128) for past in (0, 500)),
    gaps=tuple(
        gap(n, servers, factor * (10 + 2 * n + 0.01 * n * 100 + 1 + 0.5 * n))
        for n in (1, 8)
        for servers, factor in ((1, 1.0), (2, 1.25))
    ),
    request_ms=3.0,
)


def test_costs_are_those_that_were_measured_and_on_lines_between_them() -> None:
    costs = TABLE.costs()
    for answers in (1, 2, 4, 6, 8, 12):
        served = 1 + 0.5 * answers  # beside the engine
        assert costs.decode_ms(answers, 300 * answers) == pytest.approx(10 + 2 * answers + 3 * answers + served)
    assert costs.prefill_ms(64, 500) == pytest.approx(64 * 1.5)
    assert costs.slowed(1) == pytest.approx(1.25) == costs.slowed(20)
    assert costs.change_ms == pytest.approx(4.0)
    assert costs.request_ms == 3.0


def test_many_steps_cost_the_sum_of_each() -> None:
    costs = TABLE.costs()
    one_by_one = sum(costs.decode_ms(3, 300 + 3 * step) for step in range(40))
    assert costs.decodes_ms(3, 300, 40) == pytest.approx(one_by_one)


def test_without_a_second_server_nothing_is_said_of_one() -> None:
    alone = replace(TABLE, gaps=())
    assert alone.costs().slowed(4) == 1.0
    assert alone.costs().decode_ms(4, 0) == pytest.approx(18)


def test_a_file_is_read_as_it_was_written() -> None:
    assert from_json(to_json([TABLE])) == (TABLE,)


def test_what_is_shipped_can_be_read_and_says_how_it_was_measured() -> None:
    for table in stored():
        costs = table.costs()
        assert table.command.startswith("python benchmarks/fleet_steps.py")
        assert all((table.versions, table.machine, table.date))
        for one in table.decode:  # a table of lines is near all that was measured
            engine = costs.answers.ms(one.count, one.past)
            assert one.ms == pytest.approx(engine, rel=0.3)
        for base in (costs.answers.base, costs.tokens.base):  # more takes longer, as far as a median can tell
            assert all(fewer < 1.15 * more for fewer, more in pairwise(base))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 0}, "threads is 0, expected a whole number"),
        ({"decode": []}, "decode has no cells"),
        ({"prefill": [{"count": 1}]}, "has no field"),
        ({"decode": [{"count": 1, "past": 0, "ms": 2, "low": 3, "high": 4, "runs": 1}]}, "is not between its own"),
        ({"decode": [{"count": 1, "past": 0, "ms": float("nan"), "low": 1, "high": 4, "runs": 1}]}, "ms is|steps.json"),
        ({"extra": 1}, "has the field .*extra.*, which is unknown"),
        ({"versions": 3}, "expected a JSON object"),
    ],
)
def test_a_damaged_file_is_refused(change: dict[str, object], message: str) -> None:
    raw = json.loads(to_json([TABLE]))
    raw["tables"][0] |= change
    with pytest.raises(ProfileError, match=message):
        from_json(json.dumps(raw))


def test_a_missing_value_is_refused() -> None:
    for name in json.loads(to_json([TABLE]))["tables"][0]:
        raw = json.loads(to_json([TABLE]))
        del raw["tables"][0][name]
        with pytest.raises(ProfileError, match=name):
            from_json(json.dumps(raw))


def test_a_table_is_found_by_words_of_its_name_if_only_one_has_them() -> None:
    two = replace(TABLE, threads=2)
    assert find_table([TABLE, two], "tiny, openvino, 1 thread") is TABLE
    assert find_table([TABLE, two], "2 threads") is two
    with pytest.raises(ProfileError, match="is the name of 2 tables, expected one of: tiny, openvino, 1 thread; "):
        find_table([TABLE, two], "tiny")
    with pytest.raises(ProfileError, match="is the name of 0 tables"):
        find_table([TABLE, two], "large")
