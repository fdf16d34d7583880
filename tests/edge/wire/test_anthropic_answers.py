"""Answers of /v1/messages: a streamed one, put together again, is the whole one; errors in the protocol's words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings

from edge.api import scripted_llm
from edge.runtime.chunk import Answer, Chunk
from edge.runtime.engines.scripted import replies
from edge.runtime.llm import LLM
from edge.runtime.messages import ToolCall
from edge.runtime.stream import answer_of
from edge.wire.answers import Head
from edge.wire.anthropic_answers import AnthropicEvents, anthropic_error_body, message_body
from edge.wire.anthropic_request import AnthropicRequest
from edge.wire.errors import ErrorAnswer, RequestError, error_answer
from edge.wire.events import Event
from tests.edge.wire.converting import PARAMETERS, Body, answers_in_pieces

HEAD = Head("msg_1", 7, "scripted", measured=True, dropped_messages=2)
TOOL: Body = {"name": "weather", "input_schema": PARAMETERS}
HELLO: Body = {"role": "user", "content": "Hello"}
DELTAS = {
    "thinking": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "tool_use": ("input_json_delta", "partial_json"),
}
CALL = 'weather\n{"city": "Köln 😀"}'


def put_together(events: list[Event]) -> Body:
    """What a client that follows the events has at the end."""
    message: Body = {}
    written, is_open = list[str](), False
    for number, event in enumerate(events):
        assert isinstance(event.data, dict)
        data = event.data
        assert data["type"] == event.name
        match data["type"]:
            case "message_start":
                assert number == 0
                message = json.loads(json.dumps(data["message"]))
            case "ping":
                assert number == 1
            case "content_block_start":
                assert not is_open
                assert data["index"] == len(message["content"])
                message["content"].append(dict(data["content_block"]))
                written, is_open = [], True
            case "content_block_delta":
                assert is_open
                assert data["index"] == len(message["content"]) - 1
                kind, key = DELTAS[message["content"][-1]["type"]]
                assert data["delta"]["type"] == kind
                written.append(data["delta"][key])
                assert written[-1]
            case "content_block_stop":
                assert data["index"] == len(message["content"]) - 1
                message["content"][-1] |= _ended(message["content"][-1], "".join(written))
                is_open = False
            case "message_delta":
                assert not is_open
                message |= data["delta"] | {"usage": data["usage"]}
                message |= {"edge": data["edge"]} if "edge" in data else {}
            case "message_stop":
                assert number == len(events) - 1
            case other:
                pytest.fail(other)
    return message


def _ended(block: Body, written: str) -> Body:
    if block["type"] != "tool_use":
        return {block["type"]: written}
    try:
        return {"input": json.loads(written or "{}")}
    except ValueError:
        return {"edge": {"partial_json": written}}


@settings(max_examples=150, deadline=None)
@given(chunks=answers_in_pieces())
def test_a_streamed_answer_is_the_whole_one(chunks: list[Chunk]) -> None:
    events = AnthropicEvents(HEAD)
    found = [*events.begin()]
    for chunk in chunks:
        found += events.push(0, chunk)
    assert put_together([*found, *events.end()]) == message_body(HEAD, answer_of(chunks))


@pytest.mark.parametrize("limit", [None, 5, 18])
@pytest.mark.parametrize("answer", ["Hello to you", CALL, ""])
def test_so_it_is_from_a_model(answer: str, limit: int | None) -> None:
    head = Head("msg_1", 7, "scripted")
    body = {"messages": [HELLO], "tools": [TOOL], "max_tokens": limit, "stop_sequences": ["to"]}
    llm = scripted_llm(replies(lambda _: answer))
    expected = answered(body, llm, head)
    request = AnthropicRequest.from_body({**body, "stream": True})
    events = request.events(head, llm)
    found = [*events.begin()]
    (stream,) = request.start(llm)
    for chunk in stream:
        found += events.push(0, chunk)
    assert put_together([*found, *events.end()]) == expected


def answered(body: Body, llm: LLM, head: Head = HEAD) -> Body:
    request = AnthropicRequest.from_body(body)
    return request.answer(head, [stream.answer() for stream in request.start(llm)], llm)


def test_a_text_has_the_shape_of_the_protocol() -> None:
    llm = scripted_llm(replies({"Hello": "Hello to you"}))
    body = {"messages": [HELLO]}
    assert answered(body, llm) == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "scripted",
        "content": [{"type": "text", "text": "Hello to you"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 7,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 13,
        },
    }
    long = {"messages": [{"role": "user", "content": "x" * 100}]}
    for known in (False, True):
        usage = answered(long, llm)["usage"]
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == 102
        assert (usage["cache_read_input_tokens"] > 90) == known


def test_reasons_to_stop() -> None:
    llm = scripted_llm(replies(lambda _: "one two three"))
    body: Body = {"messages": [HELLO]}
    assert answered(body, llm)["stop_reason"] == "end_turn"
    assert answered({**body, "max_tokens": 3}, llm)["stop_reason"] == "max_tokens"
    found = answered({**body, "stop_sequences": ["five", "two"]}, llm)
    assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", "two")
    assert found["content"] == [{"type": "text", "text": "one "}]


@pytest.mark.parametrize(("limit", "reason"), [(None, "tool_use"), (18, "max_tokens")])
def test_a_call_has_an_object_and_a_cut_one_its_pieces(limit: int | None, reason: str) -> None:
    llm = scripted_llm(replies(lambda _: CALL))
    found = answered({"messages": [HELLO], "tools": [TOOL], "max_tokens": limit}, llm)
    (block,) = found["content"]
    assert (block["type"], block["name"], found["stop_reason"]) == ("tool_use", "weather", reason)
    assert block["id"].startswith("call_")
    if limit is None:
        assert block["input"] == {"city": "Köln 😀"}
    else:
        assert block["input"] == {}
        assert '{"city": "Köln 😀"}'.startswith(block["edge"]["partial_json"])
    again = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block["id"], "content": "sunny"}]}
    AnthropicRequest.from_body({"messages": [HELLO, {"role": "assistant", "content": [block]}, again]}).start(llm)


def test_text_beside_a_call_comes_first() -> None:
    answer = Answer("Let me see.", (1,), "tool_calls", tool_calls=(ToolCall("weather", "", "call_1"),))
    assert message_body(HEAD, answer)["content"] == [
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}},
    ]


def test_a_deadline_before_the_first_token() -> None:
    with pytest.raises(RequestError, match="deadline"):
        message_body(HEAD, Answer("", (), "deadline"))
    events = AnthropicEvents(HEAD)
    assert [*events.push(0, Chunk("", finish_reason="deadline"))] == []
    with pytest.raises(RequestError, match="deadline"):
        list(events.end())


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (ErrorAnswer(400, "wrong", "invalid_value", "top_k"), "invalid_request_error"),
        (ErrorAnswer(401, "no key", "invalid_api_key"), "authentication_error"),
        (ErrorAnswer(403, "no", "host_not_allowed"), "permission_error"),
        (ErrorAnswer(404, "no", "model_not_found", "model"), "not_found_error"),
        (ErrorAnswer(413, "large", "request_too_large"), "request_too_large"),
        (ErrorAnswer(415, "no JSON", "unsupported_media_type"), "invalid_request_error"),
        (ErrorAnswer(429, "full", "queue_full"), "rate_limit_error"),
        (ErrorAnswer(500, "broken", "internal_error"), "api_error"),
        (ErrorAnswer(503, "loading", "loading"), "overloaded_error"),
        (ErrorAnswer(504, "late", "deadline_exceeded"), "timeout_error"),
    ],
)
def test_errors_have_the_types_of_the_protocol(told: ErrorAnswer, kind: str) -> None:
    body = anthropic_error_body(told)
    assert body == {
        "type": "error",
        "error": {"type": kind, "message": told.message, "param": told.param, "code": told.code},
    }
    (event,) = AnthropicEvents(HEAD).fail(told)
    assert event == Event(body, "error")


@pytest.mark.parametrize(
    ("length", "words"), [(1200, "1202 tokens > 1024 maximum"), (1022, "1024 tokens and room for")]
)
def test_a_prompt_that_is_too_long_has_the_words_that_clients_look_for(length: int, words: str) -> None:
    llm = scripted_llm(replies({}), max_context=1024)
    with pytest.raises(RequestError) as found:
        answered({"messages": [{"role": "user", "content": "x" * length}]}, llm)
    error = anthropic_error_body(error_answer(found.value))["error"]
    assert error["message"].startswith(f"prompt is too long: {words}")
    assert (error["n_ctx"], error["code"]) == (1024, "context_length_exceeded")
