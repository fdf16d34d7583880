"""Anthropic's protocol against a live server, by plain HTTP: the order of events, tools, errors, counting."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from edge.runtime.llm import LLM
from tests.edge.server.clients.conversations import HELLO, LIMIT, PARAMETERS, RESULT, TOO_LONG, TOOL, WEATHER
from tests.edge.server.clients.serving import MODEL, wait_until_free
from tests.edge.server.live import Live

pytestmark = pytest.mark.slow
MINE = {"name": "get_weather", "description": TOOL["function"]["description"], "input_schema": PARAMETERS}
FORCED = {"type": "tool", "name": "get_weather"}
HEADERS = {"x-api-key": "none", "anthropic-version": "2023-06-01"}


def posted(live: Live, messages: list[dict[str, Any]] = HELLO, path: str = "", **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": messages, "max_tokens": LIMIT, **fields}
    return httpx.post(f"{live.url}/v1/messages{path}", json=body, headers=HEADERS, timeout=60)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each of which is named twice."""
    assert response.headers["content-type"].startswith("text/event-stream")
    found = list[dict[str, Any]]()
    for block in response.text.split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        if lines:
            name, data = lines
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


def test_an_answer_is_that_of_one_process(live: Live, single: LLM) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    expected = single.chat(messages, max_new_tokens=LIMIT).answer()
    assert expected.stats is not None
    whole = posted(live, system="Be brief.").json()
    assert whole["content"] == [{"type": "text", "text": expected.text}]
    assert (whole["type"], whole["role"], whole["stop_reason"]) == ("message", "assistant", "max_tokens")
    usage = whole["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == expected.stats.prompt_tokens
    assert usage["output_tokens"] == LIMIT
    counted = posted(live, system=[{"type": "text", "text": "Be brief."}], path="/count_tokens").json()
    assert counted == {"input_tokens": expected.stats.prompt_tokens}


def test_events_come_in_order(live: Live, single: LLM) -> None:
    expected = single.chat(HELLO, max_new_tokens=LIMIT).text()
    found = events(posted(live, stream=True))
    texts = [event["delta"]["text"] for event in found if event["type"] == "content_block_delta"]
    assert "".join(texts) == expected
    begin, end = (
        ["message_start", "ping", "content_block_start"],
        ["content_block_stop", "message_delta", "message_stop"],
    )
    assert [event["type"] for event in found] == [*begin, *["content_block_delta"] * len(texts), *end]
    assert found[0]["message"]["id"].startswith("msg_")
    assert found[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens"] == LIMIT


def test_a_stop_text_is_told(live: Live) -> None:
    text = posted(live).json()["content"][0]["text"]
    stop = text[len(text) // 2 :][:3]
    found = posted(live, stop_sequences=["~~", stop]).json()
    assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", stop)
    assert "".join(block["text"] for block in found["content"]) == text[: text.index(stop)]


def test_two_rounds_of_a_tool(live: Live, single: LLM) -> None:
    chosen = {"type": "function", "function": {"name": "get_weather"}}
    expected = single.chat(WEATHER, tools=[TOOL], tool_choice=chosen, max_new_tokens=64).answer()
    (call,) = expected.tool_calls
    whole = posted(live, WEATHER, tools=[MINE], tool_choice=FORCED, max_tokens=64).json()
    block = {"type": "tool_use", "id": call.id, "name": "get_weather", "input": json.loads(call.arguments)}
    assert (whole["content"], whole["stop_reason"]) == ([block], "tool_use")
    streamed = events(posted(live, WEATHER, tools=[MINE], tool_choice=FORCED, max_tokens=64, stream=True))
    pieces = [event["delta"]["partial_json"] for event in streamed if event["type"] == "content_block_delta"]
    assert "".join(pieces) == call.arguments
    starts = [event["content_block"] for event in streamed if event["type"] == "content_block_start"]
    assert starts == [{**block, "input": {}}]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": RESULT}]}
    given = [*WEATHER, {"role": "assistant", "content": whole["content"]}, {"role": "user", "content": [result]}]
    second = posted(live, given, tools=[MINE], tool_choice={"type": "none"}).json()
    again = [*WEATHER, expected.message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    in_one_process = single.chat(again, tools=[TOOL], tool_choice="none", max_new_tokens=LIMIT)
    assert second["content"] == [{"type": "text", "text": in_one_process.text()}]
    assert second["usage"]["cache_read_input_tokens"] > 0


@pytest.mark.parametrize("streamed", [False, True])
def test_errors_have_the_shape_of_the_protocol(live: Live, *, streamed: bool) -> None:
    wrong: list[tuple[dict[str, Any], int, str, str]] = [
        ({"model": "other"}, 404, "not_found_error", "model"),
        ({"temperature": 3}, 400, "invalid_request_error", "temperature"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "invalid_request_error",
         "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": TOO_LONG}]}, 400, "invalid_request_error", "messages"),
    ]  # fmt: skip
    for fields, status, kind, param in wrong:
        response = posted(live, **fields, stream=streamed)
        told = response.json()
        assert (response.status_code, told["type"]) == (status, "error")
        assert (told["error"]["type"], told["error"]["param"]) == (kind, param)
    assert told["error"]["message"].startswith("prompt is too long: ")


def test_leaving_in_mid_stream_frees_everything(live: Live) -> None:
    body = {"model": MODEL, "messages": HELLO, "stream": True, "max_tokens": 4000, "ignore_eos": True}
    with httpx.stream("POST", f"{live.url}/v1/messages", json=body, headers=HEADERS, timeout=60) as response:
        for number, _ in enumerate(response.iter_lines()):
            if number == 20:
                assert live.get("/page/status.json").json["running"] == 1
                break
    wait_until_free(live)
