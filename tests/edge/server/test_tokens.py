"""Tokens, log-probabilities and figures over HTTP, from a server in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge.api import scripted_llm
from edge.runtime.engines.scripted import noise
from tests.edge.server.live import Live, served, until

SCORED: dict[str, Any] = {"prompt": ["The cat", [97, 98, 257]], "max_tokens": 2, "echo": True, "logprobs": 1, "seed": 3}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with served(scripted_llm(noise())) as server:
        yield server


def counts(live: Live) -> dict[str, float]:
    """Every sample of /metrics, by name and the values of its labels."""
    reply = live.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        "/".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }


def test_tokens(live: Live) -> None:
    found = live.post("/tokenize", {"prompt": "hi<|user|>", "add_special_tokens": False})
    assert (found.status, found.json["tokens"], found.json["count"]) == (200, [104, 105, 257], 3)
    assert live.post("/detokenize", {"tokens": found.json["tokens"]}).json == {"prompt": "hi<|user|>"}
    told = live.get("/tokenizer_info")
    assert told.status == 200
    assert {"eos_token", "bos_token", "pad_token", "chat_template"} <= set(told.json)


def test_wrong_ones(live: Live) -> None:
    for path, body, param in (
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ):
        reply = live.post(path, body)
        assert (reply.status, reply.error["type"], reply.error["param"]) == (400, "invalid_request_error", param)
    assert live.get("/tokenize").status == live.post("/tokenizer_info", {}).status == 405


def test_a_stream_of_an_echo_is_the_whole(live: Live) -> None:
    whole = live.post("/v1/completions", SCORED).json["choices"]
    assert [choice["logprobs"]["token_logprobs"][0] for choice in whole] == [None, None]
    *events, done = live.post("/v1/completions", {**SCORED, "stream": True}).events
    assert done == "[DONE]"
    for choice in whole:
        parts = [part for event in events for part in event["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        for name, found in choice["logprobs"].items():
            assert [entry for part in parts if part["logprobs"] for entry in part["logprobs"][name]] == found


def test_figures_count_what_was_answered(live: Live) -> None:
    before = counts(live)
    assert live.post("/v1/completions", {"prompt": "abc", "max_tokens": 5, "ignore_eos": True}).status == 200
    assert live.post("/v1/completions", {"prompt": 5}).status == 400
    ended = "edge_requests_total//v1/completions/"
    until(lambda: counts(live)[f"{ended}refused"] > before.get(f"{ended}refused", 0))
    after = counts(live)
    for name, more in (
        (f"{ended}ok", 1),
        (f"{ended}refused", 1),
        ("edge_prompt_tokens_total", 3),
        ("edge_generation_tokens_total", 5),
        ("edge_time_to_first_token_seconds_count", 1),
    ):
        assert after[name] - before.get(name, 0) == more, name
    assert after["edge_model_ready"] == 1
    assert after["edge_num_requests_running"] == after["edge_requests_in_progress//v1/completions"] == 0
