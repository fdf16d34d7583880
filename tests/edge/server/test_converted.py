"""OpenAI's responses and Anthropic's messages over HTTP: events by name, errors in their own shapes, also midway."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from edge.api import scripted_llm
from edge.runtime.engines.scripted import replies
from tests.edge.server.live import Json, Live, Reply, served, slow, until

HELLO: list[Json] = [{"role": "user", "content": "Hello"}]
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with served(scripted_llm(replies({"Hello": "Hello to you"}), max_context=512)) as found:
        yield found


def events(reply: Reply) -> list[Json]:
    """The events of a stream: each has a name, which is also its type, and there is no [DONE]."""
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = list[Json]()
    for block in reply.body.decode().split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        if lines:
            name, data = lines
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


def types(found: Sequence[Json]) -> list[str]:
    return [event["type"] for event in found]


def test_a_response_is_the_same_whole_and_streamed(live: Live) -> None:
    whole = live.post(RESPONSES, {"input": "Hello"}).json
    assert whole["id"].startswith("resp_")
    assert whole["output"][0]["content"][0]["text"] == "Hello to you"
    found = events(live.post(RESPONSES, {"input": "Hello", "stream": True}))
    assert types(found)[:2] == ["response.created", "response.in_progress"]
    assert found[-1]["type"] == "response.completed"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert _without_ids(found[-1]["response"]) == _without_ids(whole)


def _without_ids(response: Json) -> Json:
    output = [{key: value for key, value in item.items() if key != "id"} for item in response["output"]]
    usage = {**response["usage"], "input_tokens_details": None}
    return {**response, "id": None, "created_at": None, "output": output, "usage": usage}


def test_a_message_is_the_same_whole_and_streamed(live: Live) -> None:
    whole = live.post(MESSAGES, {"messages": HELLO}).json
    assert whole["id"].startswith("msg_")
    assert whole["content"] == [{"type": "text", "text": "Hello to you"}]
    found = events(live.post(MESSAGES, {"messages": HELLO, "stream": True}))
    texts = [event["delta"]["text"] for event in found if event["type"] == "content_block_delta"]
    assert "".join(texts) == "Hello to you"
    assert found[0]["message"] == {**whole, "id": found[0]["message"]["id"], "content": [], "stop_reason": None,
                                   "usage": dict.fromkeys(whole["usage"], 0)}  # fmt: skip
    assert types(found)[-2:] == ["message_delta", "message_stop"]
    assert found[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    counted = live.post(f"{MESSAGES}/count_tokens", {"messages": HELLO}).json
    assert counted == {"input_tokens": sum(whole["usage"].values()) - whole["usage"]["output_tokens"]}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (RESPONSES, {"input": [{"role": "user", "content": 5}]}, 400, "input[0].content"),
        (RESPONSES, {"input": "Hello", "model": "other"}, 404, "model"),
        (RESPONSES, {"input": "x" * 600}, 400, "input"),
        (MESSAGES, {"messages": HELLO, "system": 5}, 400, "system"),
        (MESSAGES, {"messages": HELLO, "model": "other"}, 404, "model"),
        (MESSAGES, {"messages": [{"role": "user", "content": "x" * 600}]}, 400, "messages"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_error_before_an_answer_is_a_status(
    live: Live, path: str, body: Json, status: int, param: str, *, streamed: bool
) -> None:
    reply = live.post(path, {**body, "stream": streamed})
    assert (reply.status, reply.error["param"]) == (status, param)
    assert (reply.json.get("type") == "error") == (path == MESSAGES)


def test_a_body_that_is_not_json_has_the_errors_of_its_path(live: Live) -> None:
    for path in (MESSAGES, f"{MESSAGES}/count_tokens"):
        told = live.post(path, b"{").json
        assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    assert live.post(RESPONSES, b"{").json["error"]["code"] == "invalid_json"


def test_a_deadline_before_the_first_token(live: Live) -> None:
    late: Json = {"deadline_s": 1e-9}
    long = "y" * 400
    assert live.post(RESPONSES, {"input": long, **late}).error["code"] == "deadline_exceeded"
    told = live.post(MESSAGES, {"messages": [{"role": "user", "content": long}], **late})
    assert (told.status, told.error["type"]) == (504, "timeout_error")
    *_, failed, error = events(live.post(RESPONSES, {"input": long[1:], "stream": True, **late}))
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert (error["type"], error["code"]) == ("error", "deadline_exceeded")
    messages = [{"role": "user", "content": long[2:]}]
    last = events(live.post(MESSAGES, {"messages": messages, "stream": True, **late}))[-1]
    assert (last["type"], last["error"]["type"]) == ("error", "timeout_error")


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_the_end_of_the_server_is_told_in_a_stream(path: str) -> None:
    found = list[Reply]()
    body: dict[str, Any] = {"input": "on"} if path == RESPONSES else {"messages": HELLO}
    with served(scripted_llm(slow(0.01), max_context=100_000, num_blocks=8192)) as live:
        assert live.service is not None
        reading = threading.Thread(target=lambda: found.append(live.post(path, {**body, "stream": True})))
        reading.start()
        until(lambda: live.get("/page/status.json").json["running"] == 1)
    reading.join(30)
    last = events(found[0])
    assert last[-1]["type"] == "error"
    if path == RESPONSES:
        assert last[-2]["response"]["error"]["code"] == "server_error"
        assert last[-1]["error"]["code"] == "shutting_down"
    else:
        assert last[-1]["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_dropped_turns_are_told(path: str) -> None:
    said = [{"role": ("user", "assistant")[i % 2], "content": "x" * 60} for i in range(8)]
    body = {"input" if path == RESPONSES else "messages": [*said, *HELLO]}
    with served(scripted_llm(replies({"Hello": "Hi"}), max_context=256), context_policy="drop-oldest") as live:
        whole = live.post(path, body).json
        last = events(live.post(path, {**body, "stream": True}))
    assert whole["edge"]["dropped_messages"] > 0
    told = last[-1]["response"] if path == RESPONSES else last[-2]
    assert told["edge"] == whole["edge"]
