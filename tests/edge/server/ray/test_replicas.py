"""Two replicas on a real cluster of two nodes answer as one server does, whatever happens to them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import edge
from tests.edge.server.live import Live
from tests.edge.server.ray.clusters import (
    Nodes,
    figures,
    replica_processes,
    served,
    two_nodes,
    wait_for_replicas,
)

openai = pytest.importorskip("openai")

pytestmark = pytest.mark.slow

CLIENTS = 16
PROMPTS = [f"Write {number} short sentences about the {number}th planet." for number in range(2, 2 + CLIENTS)]
TOKENS = 40
SAMPLED = {"temperature": 0.9, "seed": 11}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = Path("/tmp") / f"edge-ray-{os.getpid()}"  # sockets' paths have to be short
    with two_nodes(folder) as found:
        yield found


@pytest.fixture(scope="module")
def live(nodes: Nodes, demo_bundle: Path) -> Iterator[Live]:
    with served(nodes, demo_bundle, "--reproducible", "--engine", "openvino", "--resume-streams") as found:
        yield found


@pytest.fixture(scope="module")
def alone(demo_bundle: Path) -> Iterator[dict[str, str]]:
    """What one model by itself answers to each prompt."""
    with edge.load(demo_bundle, engine="openvino", reproducible=True, threads=1) as llm:
        yield {
            prompt: llm.chat([{"role": "user", "content": prompt}], max_new_tokens=TOKENS, **SAMPLED).text()  # type: ignore[arg-type]
            for prompt in PROMPTS
        }


@dataclass
class Got:
    """What a client got: a text, or an error and how much came before it."""

    text: str
    error: str | None = None


def ask(live: Live, prompt: str, *, stream: bool, tokens: int = TOKENS) -> Got:
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=170)
    parts: list[str] = []
    try:
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, **SAMPLED}
        if not stream:
            whole = client.chat.completions.create(model="any", **asked)
            return Got(whole.choices[0].message.content or "")
        finished = False
        for chunk in client.chat.completions.create(model="any", stream=True, **asked):
            for choice in chunk.choices:
                parts.append(choice.delta.content or "")
                finished |= choice.finish_reason is not None
        return Got("".join(parts), None if finished else "it ended without a reason")
    except openai.APIError as error:
        return Got("".join(parts), str(error))
    finally:
        client.close()


def ask_all(live: Live, tokens: int = TOKENS) -> dict[str, Got]:
    with ThreadPoolExecutor(CLIENTS) as threads:
        futures = {
            prompt: threads.submit(ask, live, prompt, stream=index % 2 == 0, tokens=tokens)
            for index, prompt in enumerate(PROMPTS)
        }
        return {prompt: future.result() for prompt, future in futures.items()}


def test_every_answer_is_the_one_of_a_model_alone(live: Live, alone: dict[str, str]) -> None:
    before = figures(live, "answers_total")
    got = ask_all(live)
    assert {prompt: one.text for prompt, one in got.items()} == alone
    assert not [one.error for one in got.values() if one.error]
    time.sleep(1.5)  # for the replicas' figures
    after = figures(live, "answers_total")
    assert sum(after.values()) - sum(before.values()) == CLIENTS
    assert all(after[name] > before[name] for name in after)  # both have answered


def test_a_replica_that_is_killed_costs_no_answer(nodes: Nodes, live: Live, alone: dict[str, str]) -> None:
    names = set(figures(live, "answers_total"))
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(ask_all, live)
        wait_until_it_writes(live)
        os.kill(replica_processes(nodes)[0].pid, signal.SIGKILL)
        got = asking.result()
    assert not [one.error for one in got.values() if one.error]
    assert {prompt: one.text for prompt, one in got.items()} == alone
    assert len(wait_for_replicas(live, 2) - names) == 1  # another was started in its place


def test_a_node_that_is_removed_costs_no_answer(nodes: Nodes, live: Live, alone: dict[str, str]) -> None:
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(ask_all, live)
        wait_until_it_writes(live)
        nodes.remove(nodes.workers[0])
        got = asking.result()
    assert not [one.error for one in got.values() if one.error]
    assert {prompt: one.text for prompt, one in got.items()} == alone
    nodes.add()
    wait_for_replicas(live, 2)


def wait_until_it_writes(live: Live) -> None:
    """Wait until both replicas are computing answers."""
    deadline = time.monotonic() + 60
    while len([name for name, running in figures(live, "requests_running").items() if running]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
