"""Many clients at once, some of whom leave: nothing is lost, mixed up, or kept. Longer: benchmarks/load.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from crowd import questions, run_crowd, single_runs
from load import in_use, pool_options, settled

from edge.profiles.server_process import free_port, serve_command, started

pytestmark = pytest.mark.slow

CLIENTS, SECONDS = 32, 8.0
CONTEXTS, MAX_CONTEXT = 4, 128


@pytest.mark.parametrize("with_limit", [True, False])
def test_a_crowd_gets_what_each_gets_alone(demo_bundle: Path, with_limit: bool) -> None:
    asked, port = questions(8, max_tokens=with_limit), free_port()
    options = ("--engine", "openvino", *pool_options(demo_bundle, CONTEXTS, MAX_CONTEXT))
    with started(serve_command(str(demo_bundle), port, *options), port) as server:
        expected = single_runs(server.address, asked)
        assert len({text for text, _ in expected}) > len(asked) / 2
        before = settled(server)
        outcome = run_crowd(server.address, asked, expected, clients=CLIENTS, seconds=SECONDS)
        after = settled(server)
    assert CONTEXTS <= after["kv_tokens"] // MAX_CONTEXT < 2 * CONTEXTS
    assert not outcome.different, outcome.different[0]
    assert not outcome.lost, outcome.lost[0]
    assert not outcome.failed
    assert outcome.same > CLIENTS / 2
    assert outcome.left > 0
    assert (after["running"], after["waiting"]) == (0, 0)
    assert in_use(after) == in_use(before) == 0
