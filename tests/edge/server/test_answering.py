"""Answers over HTTP: equal to those in this process, whole and streamed; and what becomes of a client that leaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from edge.api import scripted_llm
from edge.runtime.engines.scripted import END, noise, replies
from edge.runtime.errors import DeviceError
from tests.edge.server.live import ENDLESS, Json, Live, Reply, served, slow

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER: Json = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = 'weather\n{"city": "Köln"}'


def without_times(body: Json) -> Json:
    """What has to be equal for equal requests."""
    left = {key: value for key, value in body.items() if key not in ("id", "created", "timings", "system_fingerprint")}
    return {**left, "usage": {k: v for k, v in left["usage"].items() if k != "prompt_tokens_details"}}


def joined(events: Sequence[Json]) -> dict[int, tuple[str, list[Any], str | None]]:
    """Text, log-probabilities and finish reason of each choice of a stream."""
    found: dict[int, tuple[str, list[Any], str | None]] = {}
    for event in events:
        for choice in event["choices"]:
            text, logprobs, reason = found.get(choice["index"], ("", [], None))
            assert reason is None, "nothing follows a finish reason"
            delta = choice.get("delta", {"content": choice.get("text")})
            told = (choice.get("logprobs") or {}).get("content") or []
            found[choice["index"]] = (text + (delta.get("content") or ""), [*logprobs, *told], choice["finish_reason"])
    return found


@pytest.fixture(scope="module")
def noisy() -> Iterator[Live]:
    with served(scripted_llm(noise(END))) as live:
        yield live


@pytest.mark.parametrize("more", [{}, {"n": 3, "seed": 5}, {"logprobs": True, "top_logprobs": 2}, {"stop": ["e", "o"]}])
def test_served_equals_called_and_streamed_equals_whole(noisy: Live, more: Json) -> None:
    assert noisy.service is not None
    asked = {"max_tokens": 40, "temperature": 1, "seed": 3, **more}
    whole = noisy.chat("Hello", **asked).json
    llm, n = noisy.service.llm, asked.pop("n", 1)
    options: Json = {"max_new_tokens": 40, "temperature": 1, "seed": asked["seed"], "stop": more.get("stop", [])}
    called = [stream.text() for stream in llm.chat_samples(HELLO, n, **options)]
    assert [choice["message"]["content"] for choice in whole["choices"]] == called
    events = noisy.chat("Hello", **{**asked, "n": n, "stream": True}).events
    assert events[-1] == "[DONE]"
    streamed = joined(events[:-1])
    for choice in whole["choices"]:
        logprobs = (choice["logprobs"] or {}).get("content") or []
        assert streamed[choice["index"]] == (choice["message"]["content"], logprobs, choice["finish_reason"])
    assert without_times(noisy.chat("Hello", **{**asked, "n": n}).json) == without_times(whole)


@pytest.mark.parametrize("more", [{}, {"prompt": ["ab", "cd"], "n": 2}, {"echo": True}, {"prompt": [72, 105]}])
def test_completions_likewise(noisy: Live, more: Json) -> None:
    asked = {"prompt": "once", "max_tokens": 20, "temperature": 1, "seed": 3, **more}
    whole = noisy.post("/v1/completions", asked).json
    events = noisy.post("/v1/completions", {**asked, "stream": True}).events
    streamed = joined(events[:-1])
    assert [(c["text"], c["finish_reason"]) for c in whole["choices"]] == [
        (streamed[i][0], streamed[i][2]) for i in sorted(streamed)
    ]


def test_a_stream_begins_with_a_role_has_one_id_and_tells_usage_only_when_asked(noisy: Live) -> None:
    plain, asked = (
        noisy.chat("Hello", stream=True, max_tokens=5, stream_options=more).events
        for more in (None, {"include_usage": True})
    )
    first = plain[0]["choices"][0]
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert len({event["id"] for event in plain[:-1]}) == 1
    assert all(event["choices"] and "usage" not in event for event in plain[:-1])
    assert asked[-2]["choices"] == []
    assert asked[-2]["usage"]["completion_tokens"] == 5
    assert asked[-2]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert all(event["usage"] is None for event in asked[:-2])


def test_a_call_streams_its_name_then_its_arguments() -> None:
    with served(scripted_llm(replies({"Hello": CALL}))) as live:
        whole = live.chat("Hello", tools=[WEATHER]).json["choices"][0]
        events = live.chat("Hello", tools=[WEATHER], stream=True).events[:-1]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": None}
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    (told,) = whole["message"]["tool_calls"]
    assert (calls[0]["id"], calls[0]["type"], calls[0]["function"]["name"]) == (told["id"], "function", "weather")
    assert all(call["index"] == 0 for call in calls)
    assert not any("id" in call or "name" in call["function"] for call in calls[1:])
    assert "".join(call["function"]["arguments"] for call in calls) == told["function"]["arguments"]
    assert events[-1]["choices"][0]["finish_reason"] == whole["finish_reason"] == "tool_calls"


def test_a_second_turn_reads_only_what_is_new(noisy: Live) -> None:
    first = noisy.chat("Tell me something long", max_tokens=64).json
    history = [
        {"role": "user", "content": "Tell me something long"},
        first["choices"][0]["message"],
        {"role": "user", "content": "More"},
    ]
    usage = noisy.post("/v1/chat/completions", {"messages": history, "max_tokens": 4}).json["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0


def test_an_error_in_a_stream_is_its_last_event() -> None:
    llm = scripted_llm(slow(0.0))
    decode, steps = llm.engine.decode, 0

    def failing(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > 5:
            raise DeviceError("the device at /secret/path is gone")
        return decode(*arguments)

    llm.engine.decode = failing  # type: ignore[method-assign,assignment]
    with served(llm) as live:
        streamed = live.post("/v1/chat/completions", ENDLESS)
        whole = live.post("/v1/chat/completions", {**ENDLESS, "stream": False})
    assert streamed.status == 200
    assert streamed.events[-1]["error"]["code"] == "internal_error"
    assert "secret" not in json.dumps(streamed.events[-1])
    assert whole.status == 500
    assert whole.headers["x-should-retry"] == "false"
    assert b"secret" not in whole.body


def in_time_for_a_token(live: Live, **fields: object) -> Reply:
    """Ask with a deadline after the first token; where that takes long, the deadline is later."""
    for deadline_s in (0.2, 2, 20):
        reply = live.chat("x", deadline_s=deadline_s, **fields)
        if b"deadline_exceeded" not in reply.body:
            break
    return reply


def test_deadlines() -> None:
    with served(scripted_llm(slow(0.01), max_context=1 << 16, num_blocks=1 << 12)) as live:
        cut = in_time_for_a_token(live).json["choices"][0]
        assert (cut["finish_reason"], cut["edge"]) == ("length", {"finish_reason": "deadline"})
        events = in_time_for_a_token(live, stream=True).events
        assert events[-2]["choices"][0]["edge"] == {"finish_reason": "deadline"}
        late = live.chat("y" * 600, deadline_s=1e-9)
        assert (late.status, late.error["code"]) == (504, "deadline_exceeded")
        assert late.headers["x-should-retry"] == "false"
        assert live.chat("y" * 600, deadline_s=1e-9, stream=True).events[-1]["error"]["code"] == "deadline_exceeded"


def test_silence_is_broken_by_a_clock_and_headers_come_before_the_first_token() -> None:
    go = threading.Event()

    def script(_: Sequence[int]) -> int:
        assert go.wait(20)
        return END

    with served(scripted_llm(script), ping_s=0.05) as live:
        connection = live.begin("/v1/chat/completions", ENDLESS)
        told = b""
        while told.count(b": ping") < 4:
            told += connection.recv(1 << 16)
        assert b"200 OK" in told
        go.set()
        while b"[DONE]" not in told:
            told += connection.recv(1 << 16)
        connection.close()
    assert told.rindex(b": ping") < told.index(b"data: ")


def test_reading_a_long_prompt_is_told_on_request() -> None:
    llm = scripted_llm(replies({}), prefill_chunk=16)
    with served(llm) as live:
        asked = {"messages": [{"role": "user", "content": "x" * 200}], "stream": True, "max_tokens": 2}
        silent = live.post("/v1/chat/completions", asked).events
        told = live.post(
            "/v1/chat/completions",
            {**asked, "messages": [{"role": "user", "content": "y" * 200}], "return_progress": True},
        ).events
    assert not any("prompt_progress" in event for event in silent[:-1])
    progress = [event["prompt_progress"] for event in told[:-1] if "prompt_progress" in event]
    done = [one["processed"] for one in progress]
    assert progress
    assert done == sorted(done)
    assert all(one["processed"] <= one["total"] for one in progress)


def test_a_conversation_that_is_too_long_is_refused_or_cut_and_says_so() -> None:
    turns = [{"role": role, "content": "word " * 30} for _ in range(5) for role in ("user", "assistant")]
    asked = {"messages": [{"role": "system", "content": "S"}, *turns, *HELLO], "max_tokens": 4}
    for policy in ("error", "drop-oldest"):
        with served(scripted_llm(replies({"Hello": "Hi"}), max_context=512), context_policy=policy) as live:
            reply = live.post("/v1/chat/completions", asked)
            streamed = live.post("/v1/chat/completions", {**asked, "stream": True})
        if policy == "error":
            assert (reply.status, streamed.status) == (400, 400)
            assert reply.error["code"] == "context_length_exceeded"
            assert reply.error["message"].startswith("This model's maximum context length is 512 tokens. However")
            assert reply.error["n_ctx"] == 512
        else:
            dropped = reply.json["edge"]["dropped_messages"]
            assert dropped > 0
            assert streamed.events[0]["edge"] == {"dropped_messages": dropped}
            assert reply.json["choices"][0]["message"]["content"] == "Hi"


def test_models_and_their_names(noisy: Live) -> None:
    listed = noisy.get("/v1/models").json["data"]
    assert [model["id"] for model in listed] == ["model"]
    assert noisy.get("/v1/models/model").json == listed[0]
    assert noisy.get("/v1/models/other").error["code"] == "model_not_found"
    assert noisy.chat("Hello", model="model", max_tokens=1).json["model"] == "model"
    refused = noisy.chat("Hello", model="gpt-4o-mini")
    assert (refused.status, refused.error["param"], refused.error["code"]) == (404, "model", "model_not_found")
    with served(scripted_llm(replies({})), any_model=True) as live:
        assert live.chat("Hello", model="gpt-4o-mini").json["model"] == "gpt-4o-mini"


def test_paths_without_v1_and_below_a_root() -> None:
    with served(scripted_llm(replies({"Hello": "Hi"})), root_path="/llm") as live:
        for path in ("/chat/completions", "/llm/v1/chat/completions", "/llm/chat/completions"):
            assert live.post(path, {"messages": HELLO}).json["choices"][0]["message"]["content"] == "Hi"
        assert live.get("/llm/health").status == 200
        assert live.get("/llmx/health").status == 404


def test_a_document_is_read_as_on_the_command_line(noisy: Live) -> None:
    reply = noisy.post("/page/read-document?name=a.md", b"# Title\n\ntext", content_type="application/octet-stream")
    assert reply.json["name"] == "a.md"
    assert "Title" in reply.json["text"]
    assert reply.json["tokens"] > 0
    broken = noisy.post("/page/read-document?name=a.pdf", b"%PDF-1.4 nothing", content_type="application/octet-stream")
    assert (broken.status, broken.error["param"]) == (400, "name")
    assert "/tmp" not in broken.error["message"]


def test_what_a_visitor_left_is_forgotten_and_a_pinned_beginning_stays(noisy: Live) -> None:
    assert noisy.service is not None
    llm = noisy.service.llm
    llm.prefixes.pin("a beginning that is long enough to fill a whole block of the cache")
    noisy.chat("My name is Ada and this is long enough to be kept", max_tokens=32)
    pinned, kept = llm.cache_stats.pinned_blocks, llm.cache_stats.blocks
    assert kept > pinned > 0
    assert noisy.post("/page/forget", {}).json == {}
    assert (llm.cache_stats.pinned_blocks, llm.cache_stats.blocks) == (pinned, pinned)
    usage = noisy.chat("My name is Ada and this is long enough to be kept", max_tokens=1).json["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    llm.prefixes.unpin_all()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_speeds_of_each_token_on_request(noisy: Live, path: str) -> None:
    asked = {"messages": HELLO} if "chat" in path else {"prompt": "Hello"}
    events = noisy.post(path, {**asked, "stream": True, "max_tokens": 6, "timings_per_token": True}).events[:-1]
    counts = [event["timings"]["predicted_n"] for event in events if "timings" in event]
    assert counts == sorted(counts)
    assert counts[-1] == 6
    live, last = (event["timings"] for event in (events[1], [e for e in events if "timings" in e][-1]))
    assert {name: live[name] for name in ("prompt_n", "cache_n", "prompt_ms")} == {
        name: last[name] for name in ("prompt_n", "cache_n", "prompt_ms")
    }
    assert len(counts) > 1
    plain = noisy.post(path, {**asked, "stream": True, "max_tokens": 6}).events[:-1]
    assert ["timings" in event for event in plain].count(True) == 1, "in the last one alone"


def test_errors_before_an_endpoint_have_the_shape_of_its_protocol() -> None:
    with served(scripted_llm(replies({})), keys=("key-of-a-test",)) as live:
        for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/messages/nothing"):
            refused = live.post(path, {})
            assert refused.status == 401
            assert refused.json["type"] == "error"
            assert refused.json["error"]["type"] == "authentication_error"
        missing = live.get("/v1/messages/nothing", authorization="Bearer key-of-a-test")
        assert (missing.status, missing.json["error"]["type"]) == (404, "not_found_error")


def test_the_root_without_a_slash_leads_to_the_page() -> None:
    with served(scripted_llm(replies({})), root_path="/llm/") as live:
        assert b"<html" in live.get("/llm").body
        with live.connect() as connection:
            connection.sendall(b"GET /llm HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            told = b"".join(iter(lambda: connection.recv(4096), b"")).lower()
    assert b" 307 " in told
    assert b"location: /llm/\r\n" in told
