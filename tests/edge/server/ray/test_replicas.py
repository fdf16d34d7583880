"""Two replicas on a real cluster of two nodes answer as one server does, whatever happens to them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from ray_conversations import shares_of

import edge
from tests.edge.server.live import Live, until
from tests.edge.server.ray.asking import Got, ask
from tests.edge.server.ray.clusters import (
    Nodes,
    figures,
    replica_processes,
    served,
    two_nodes,
    wait_for_replicas,
)

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

CLIENTS = 16
PROMPTS = [f"Write {number} short sentences about the {number}th planet." for number in range(2, 2 + CLIENTS)]
TOKENS = 40
SAMPLED = {"temperature": 0.9, "seed": 11}
SUBJECTS = ("rivers", "clocks", "bridges", "maps")
TURNS = 10
MAX_WAITING = 4


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = Path("/tmp") / f"edge-ray-{os.getpid()}"  # sockets' paths have to be short
    with two_nodes(folder) as found:
        yield found


@pytest.fixture(scope="module")
def live(request: pytest.FixtureRequest, nodes: Nodes, demo_bundle: Path) -> Iterator[Live]:
    with served(nodes, demo_bundle, "--engine", "openvino", *request.param) as found:
        yield found


resuming = pytest.mark.parametrize("live", [("--reproducible", "--resume-streams")], indirect=True, scope="module")
usual = pytest.mark.parametrize("live", [("--max-waiting", str(MAX_WAITING))], indirect=True, scope="module")


@pytest.fixture(scope="module")
def alone(demo_bundle: Path) -> Iterator[dict[str, str]]:
    """What one model by itself answers to each prompt."""
    with edge.load(demo_bundle, engine="openvino", reproducible=True, threads=1) as llm:
        yield {
            prompt: llm.chat([{"role": "user", "content": prompt}], max_new_tokens=TOKENS, **SAMPLED).text()  # type: ignore[arg-type]
            for prompt in PROMPTS
        }


def ask_all(live: Live, begun: set[str] | None = None) -> dict[str, Got]:
    """Ask all prompts at once, every other as a stream."""
    with ThreadPoolExecutor(CLIENTS) as threads:
        futures = {
            prompt: threads.submit(ask, live, prompt, stream=index % 2 == 0, begun=begun, max_tokens=TOKENS, **SAMPLED)
            for index, prompt in enumerate(PROMPTS)
        }
        return {prompt: future.result() for prompt, future in futures.items()}


@resuming
def test_every_answer_is_the_one_of_a_model_alone(live: Live, alone: dict[str, str]) -> None:
    before = figures(live, "answers_total")
    got = ask_all(live)
    assert got == {prompt: Got(text) for prompt, text in alone.items()}
    until(lambda: sum(figures(live, "answers_total").values()) - sum(before.values()) >= CLIENTS, 60)
    after = figures(live, "answers_total")
    assert sum(after.values()) - sum(before.values()) == CLIENTS
    assert all(after[name] > before[name] for name in after)  # both have answered


@resuming
def test_a_replica_that_is_killed_costs_no_answer(nodes: Nodes, live: Live, alone: dict[str, str]) -> None:
    names = set(figures(live, "answers_total"))
    begun: set[str] = set()
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(ask_all, live, begun)
        wait_for_the_middle(live, begun)
        os.kill(replica_processes(nodes)[0].pid, signal.SIGKILL)
        got = asking.result()
    assert got == {prompt: Got(text) for prompt, text in alone.items()}
    assert len(wait_for_replicas(live, 2) - names) == 1  # another was started in its place


@resuming
def test_a_node_that_is_removed_costs_no_answer(nodes: Nodes, live: Live, alone: dict[str, str]) -> None:
    begun: set[str] = set()
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(ask_all, live, begun)
        wait_for_the_middle(live, begun)
        nodes.remove(nodes.workers[0])
        got = asking.result()
    assert got == {prompt: Got(text) for prompt, text in alone.items()}
    nodes.add()


@usual
def test_every_turn_of_a_conversation_finds_the_earlier_ones(live: Live) -> None:
    """Four at once, so that each would now and then be answered by the other replica, which is idle."""
    with ThreadPoolExecutor(len(SUBJECTS)) as threads:
        for shares in threads.map(lambda subject: shares_of(live.url, subject, TURNS, thinks_s=0), SUBJECTS):
            assert len(shares) == TURNS - 1
            assert min(shares) >= 0.95, shares


@usual
def test_where_every_queue_is_full_429_is_told_and_only_there(live: Live) -> None:
    def ask_for_four(number: int) -> int:
        body = {"messages": [{"role": "user", "content": f"Count from {number}."}], "max_tokens": 12, "n": 4}
        return live.post("/v1/chat/completions", {**body, "temperature": 0.8, "seed": number}).status

    with ThreadPoolExecutor(32) as threads:
        assert set(threads.map(ask_for_four, range(32))) == {200, 429}
        assert set(threads.map(ask_for_four, range(2))) == {200}  # a replica each, at worst


@usual
def test_streams_of_a_killed_replica_end_with_one_error_and_the_rest_is_answered(nodes: Nodes, live: Live) -> None:
    counted = ", ".join(map(str, range(1, 80)))
    begun: set[str] = set()
    until(lambda: not running(live))
    with ThreadPoolExecutor(16) as threads:
        streams: list[Future[Got]] = []

        def begin(prompt: str, *, stream: bool) -> Future[Got]:
            return threads.submit(ask, live, prompt, stream=stream, begun=begun, max_tokens=900, regex=counted)

        def all_have_begun() -> bool:
            return len(begun) == len(streams)

        while len(running(live)) < 2:
            assert len(streams) < 9
            streams += [begin(f"Count, {len(streams) + number}.", stream=True) for number in range(3)]
            until(all_have_begun, 60)
            time.sleep(1.2)  # for the replicas' figures
        wholes = [begin(f"Count once more, {number}.", stream=False) for number in range(2)]
        time.sleep(0.3)
        assert not any(one.done() for one in streams)
        os.kill(replica_processes(nodes)[0].pid, signal.SIGKILL)
        later = [begin(f"Count later, {number}.", stream=bool(number)) for number in range(2)]
        got = [one.result() for one in streams]
        assert [one.result() for one in [*wholes, *later]] == [Got(counted)] * (len(wholes) + 2)
    lost = [one for one in got if one != Got(counted)]
    assert lost
    assert len(lost) < len(streams)
    for one in lost:
        assert one.error == "replica_lost"
        assert counted.startswith(one.text)
        assert 0 < len(one.text) < len(counted)


def wait_for_the_middle(live: Live, begun: set[str]) -> None:
    """Wait until half of the streams have told something, and both replicas are computing answers."""
    until(lambda: len(begun) >= CLIENTS // 4 and len(running(live)) == 2, 60)


def running(live: Live) -> list[str]:
    return [name for name, number in figures(live, "requests_running").items() if number]
