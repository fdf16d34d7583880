"""A conversation stays where its keys and values are; streams that may not move end cleanly; full is told as such."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.edge.server.live import Live
from tests.edge.server.ray.clusters import Nodes, figures, replica_processes, served, two_nodes, wait_for_replicas

openai = pytest.importorskip("openai")

pytestmark = pytest.mark.slow

TURNS = 10


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    folder = Path("/tmp") / f"edge-ray-{os.getpid()}"  # sockets' paths have to be short
    with two_nodes(folder) as found:
        yield found


@pytest.fixture(scope="module")
def live(nodes: Nodes, demo_bundle: Path) -> Iterator[Live]:
    with served(nodes, demo_bundle, "--reproducible", "--engine", "openvino", "--max-waiting", "4") as found:
        yield found


def client_of(live: Live) -> Any:  # Any: openai may be missing
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=170)


def test_every_turn_of_a_conversation_finds_the_earlier_ones(live: Live) -> None:
    """Two at a time, so that a replica that is idle would be the other one now and then."""

    def talk(subject: str) -> list[float]:
        messages: list[dict[str, str]] = [{"role": "system", "content": f"You like {subject}."}]
        shares, earlier = [], 0
        with client_of(live) as client:
            for turn in range(TURNS):
                messages.append({"role": "user", "content": f"Say something about {subject}, the {turn}th time."})
                answer = client.chat.completions.create(model="any", messages=messages, max_tokens=24, temperature=0)
                usage = answer.usage
                if earlier:
                    shares.append(usage.prompt_tokens_details.cached_tokens / earlier)
                earlier = usage.total_tokens
                messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        return shares

    with ThreadPoolExecutor(2) as threads:
        for shares in threads.map(talk, ("rivers", "clocks")):
            assert len(shares) == TURNS - 1
            assert sum(shares) / len(shares) >= 0.95, shares


def test_a_stream_whose_replica_is_lost_ends_with_one_error_and_nothing_twice(nodes: Nodes, live: Live) -> None:
    asked: dict[str, Any] = {"max_tokens": 120, "temperature": 0, "extra_body": {"ignore_eos": True}}
    questions = [f"Write a long story about planet {number}." for number in range(8)]

    def ask(question: str) -> tuple[str, str | None]:
        text = ""
        with client_of(live) as client:
            try:
                messages = [{"role": "user", "content": question}]
                for chunk in client.chat.completions.create(model="any", messages=messages, stream=True, **asked):
                    text += "".join(choice.delta.content or "" for choice in chunk.choices)
            except openai.APIError as error:
                return text, str(error)
        return text, None

    with ThreadPoolExecutor(len(questions)) as threads:
        undisturbed = list(threads.map(ask, questions))
        assert not [error for _, error in undisturbed if error]
        asking = [threads.submit(ask, question) for question in questions]
        deadline = time.monotonic() + 60
        while not all(figures(live, "requests_running").values()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)  # into the middle
        os.kill(replica_processes(nodes)[0].pid, signal.SIGKILL)
        got = [one.result() for one in asking]
    lost = [text for text, error in got if error]
    assert lost
    assert len(lost) < len(questions)
    for (text, error), (whole, _) in zip(got, undisturbed, strict=True):
        if error is None:
            assert text == whole
        else:
            assert "replica" in error
            assert whole.startswith(text)
            assert len(text) < len(whole)
    wait_for_replicas(live, 2)


def test_where_every_queue_is_full_429_is_told_and_the_others_are_answered(live: Live) -> None:
    def ask(number: int) -> int:
        body = {"messages": [{"role": "user", "content": f"Count from {number}."}], "max_tokens": 30, "n": 4}
        return live.post("/v1/chat/completions", {**body, "temperature": 0.8, "seed": number}).status

    with ThreadPoolExecutor(32) as threads:
        statuses = list(threads.map(ask, range(32)))
    assert set(statuses) == {200, 429}
