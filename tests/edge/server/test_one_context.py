"""A server over an engine with one context that nobody else sees, such as an NPU's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from edge.runtime.engines.scripted import replies
from tests.edge.server.live import Live, served
from tests.runtime.test_last_sequence import holding_llm


@pytest.fixture
def live() -> Iterator[Live]:
    llm, _ = holding_llm(replies(str.upper))
    with served(llm) as server:
        yield server


def test_clients_take_turns_and_are_told_what_was_kept(live: Live) -> None:
    with ThreadPoolExecutor(3) as clients:
        found = list(clients.map(lambda text: live.chat(text, n=2).json, ["ab", "cd", "ef"]))
    assert [[choice["message"]["content"] for choice in one["choices"]] for one in found] == [
        ["AB", "AB"],
        ["CD", "CD"],
        ["EF", "EF"],
    ]
    again: Any = live.chat("a longer question").json
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    again = live.chat("a longer question").json
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 16


def test_what_it_cannot_do_is_answered(live: Live) -> None:
    too_long = live.chat("x" * 100)
    assert too_long.status == 400
    assert too_long.json["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 80 tokens" in too_long.json["error"]["message"]
    scored = live.post("/v1/completions", {"prompt": "ab", "echo": True, "logprobs": 1, "max_tokens": 1})
    assert scored.status == 400
    assert "gives the logits of a prompt's last token only" in scored.json["error"]["message"]
    status: Any = live.get("/page/status.json").json
    assert (status["engine"], status["max_context"]) == ("scripted", 96)
