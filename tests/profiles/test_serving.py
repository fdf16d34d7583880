"""Figures of several clients, by hand; and those of a live server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.profiles.http_load import Event, Reply, run_clients
from edge.profiles.server_process import free_port, serve_command, started
from edge.profiles.serving import Spoken, completion, measure_clients, percentile, spoken, summed_up
from edge.runtime.errors import ProfileError


def reply(events: Sequence[object]) -> Reply:
    """A stream whose events come a second apart."""
    data = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in events]
    return Reply(
        0.0, 0.1, 9.0, 200, events=tuple(Event(float(at), part) for at, part in enumerate(data)), complete=True
    )


USAGE = {"choices": [], "usage": {"completion_tokens": 3}}


def test_moments_are_those_of_events_with_a_token() -> None:
    texts = [{"choices": [{"text": text}], "usage": None} for text in ("", "a", "b")]
    assert spoken(reply([*texts, USAGE, b"[DONE]"])) == Spoken(0.0, (1.0, 2.0), 3)
    deltas = [{"choices": [{"delta": delta}]} for delta in ({"role": "assistant", "content": ""}, {"content": "a"}, {})]
    assert spoken(reply([*deltas, USAGE])) == Spoken(0.0, (1.0,), 3)
    ids = [{"choices": [{"text": "", "token_ids": found}]} for found in ([], [5], [6])]
    assert spoken(reply([*ids, USAGE])) == Spoken(0.0, (1.0, 2.0), 3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (reply([USAGE]), "has no text"),
        (reply([{"choices": [{"text": "a"}]}]), "no usage"),
        (reply([{"error": {"message": "engine died"}}]), "engine died"),
        (reply([b"{"]), "an event is not valid JSON"),
        (replace(reply([USAGE]), complete=False), "expected a stream to its end"),
        (Reply(0.0, 0.1, 9.0, 400, body=b"too long", complete=True), "answered 400, 'too long'"),
        (Reply(0.0, None, 9.0, 0), "answered 0"),
    ],
)
def test_what_is_not_an_answer_is_an_error(wrong: Reply, said: str) -> None:
    with pytest.raises(ProfileError, match=said):
        spoken(wrong)


def test_figures_by_hand() -> None:
    found = summed_up(2, [Spoken(10.0, (11.0, 11.5, 12.0), 3), Spoken(10.5, (12.5, 14.0), 3)])
    assert (found.clients, found.tokens) == (2, 6)
    assert found.tokens_per_second == 6 / 4
    assert (found.ttft_ms_p50, found.ttft_ms_p99) == (1500, 2000)
    assert (found.gap_ms_p50, found.gap_ms_p99) == (500, 1500)


@given(st.lists(st.integers(-9, 9), min_size=1), st.floats(0.1, 100))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(values: list[int], percent: float) -> None:
    found = percentile(values, percent)
    assert found in values
    assert 100 * sum(value <= found for value in values) >= percent * len(values) * (1 - 1e-12)
    assert 100 * sum(value < found for value in values) <= percent * len(values)


def test_a_live_server_is_measured(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_API_KEY", "secret")  # a server that is only measured does not ask for it
    port = free_port()
    with started(serve_command(str(tiny_bundle), port), port) as server:
        tasks = [[([7 + client, 9 + number, 5], 8 + number) for number in range(2)] for client in range(3)]
        found = measure_clients(server.address, tasks, ids=True)
        assert (found.clients, found.tokens) == (3, 3 * (8 + 9))
        assert found.tokens_per_second > 0
        assert 0 < found.ttft_ms_p50 <= found.ttft_ms_p99
        assert found.gap_ms_p99 > 0
        [[one]] = run_clients(server.address, [[completion([7, 9, 5], 8, ids=True)]])
        assert len(spoken(one).token_times) == 8
        with pytest.raises(ProfileError, match="an answer has 6 tokens, 100 were asked for"):
            measure_clients(server.address, [[([1] * 250, 100)]])
        with pytest.raises(ProfileError, match="answered 400"):
            measure_clients(server.address, [[([1] * 300, 1)]])
