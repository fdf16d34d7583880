"""Answers of /v1/responses: a streamed one, put together again, is the whole one, however it was cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings

from edge.api import scripted_llm
from edge.runtime.chunk import Answer, Chunk
from edge.runtime.engines.scripted import replies
from edge.runtime.stream import answer_of
from edge.wire.answers import Head
from edge.wire.errors import ErrorAnswer, RequestError
from edge.wire.events import Event
from edge.wire.responses_answers import response_of
from edge.wire.responses_events import ResponsesEvents
from edge.wire.responses_request import ResponsesRequest
from tests.edge.wire.converting import TOOL, Body, answers_in_pieces

HEAD = Head("resp_1", 7, "scripted", measured=True, dropped_messages=2)
ASKED: Body = {"input": "Hello", "tools": [], "metadata": {"a": "b"}, "temperature": 0.5}
TOKENIZER = scripted_llm(replies({})).tokenizer
FLAT: Body = {"type": "function", **TOOL["function"]}


def put_together(events: list[Event]) -> Body:  # noqa: PLR0912  # a branch for each kind of event
    """What a client that follows the events has at the end, without the response that the last one holds."""
    items = list[Body]()
    for number, event in enumerate(events):
        assert isinstance(event.data, dict)
        data = event.data
        assert data["type"] == event.name
        assert data["sequence_number"] == number
        match data["type"].removeprefix("response."):
            case "created" | "in_progress":
                assert number < 2
                assert (data["response"]["status"], data["response"]["output"]) == ("in_progress", [])
            case "output_item.added":
                assert data["output_index"] == len(items)
                assert all(item["status"] != "in_progress" for item in items)
                items.append(json.loads(json.dumps(data["item"])))
                assert items[-1]["status"] == "in_progress"
            case "content_part.added":
                assert items[-1]["content"] == []
                items[-1]["content"].append(dict(data["part"]))
            case "output_text.delta" | "reasoning_text.delta":
                assert data["delta"]
                items[-1]["content"][data["content_index"]]["text"] += data["delta"]
            case "output_text.done" | "reasoning_text.done":
                assert items[-1]["content"][0]["text"] == data["text"]
            case "content_part.done":
                assert items[-1]["content"] == [data["part"]]
            case "function_call_arguments.delta":
                assert data["delta"]
                items[-1]["arguments"] += data["delta"]
            case "function_call_arguments.done":
                assert (items[-1]["arguments"], items[-1]["name"]) == (data["arguments"], data["name"])
            case "output_item.done":
                assert items[-1] | {"status": data["item"]["status"]} == data["item"]
                items[-1] = data["item"]
            case "completed" | "incomplete":
                assert number == len(events) - 1
                assert data["response"]["status"] == data["type"].removeprefix("response.")
                assert data["response"]["output"] == items
            case other:
                pytest.fail(other)
        if "item_id" in data:
            assert data["item_id"] == items[data["output_index"]]["id"]
            assert data["output_index"] == len(items) - 1
    last = events[-1].data
    assert isinstance(last, dict)
    return {**last["response"], "output": items}


@settings(max_examples=150, deadline=None)
@given(chunks=answers_in_pieces())
def test_a_streamed_answer_is_the_whole_one(chunks: list[Chunk]) -> None:
    events = ResponsesEvents(HEAD, ASKED, TOKENIZER)
    found = [*events.begin()]
    for chunk in chunks:
        found += events.push(0, chunk)
    found += events.end()
    assert put_together(found) == response_of(HEAD, ASKED, answer_of(chunks), TOKENIZER)


@pytest.mark.parametrize("limit", [None, 5, 18])
@pytest.mark.parametrize("answer", ["Hello to you", 'weather\n{"city": "Köln 😀"}', ""])
def test_so_it_is_from_a_model(answer: str, limit: int | None) -> None:
    body = {"input": "Hello", "tools": [FLAT], "max_output_tokens": limit}
    llm = scripted_llm(replies(lambda _: answer))
    whole = ResponsesRequest.from_body(body)
    expected = whole.answer(Head("resp_1", 7, "scripted"), [stream.answer() for stream in whole.start(llm)], llm)
    streamed = ResponsesRequest.from_body({**body, "stream": True})
    events = streamed.events(Head("resp_1", 7, "scripted"), llm)
    found = [*events.begin()]
    (stream,) = streamed.start(llm)
    for chunk in stream:
        found += events.push(0, chunk)
    assert put_together([*found, *events.end()]) == expected


def test_a_text_has_the_shape_of_the_protocol() -> None:
    llm = scripted_llm(replies({"Hello": "Hello to you"}))
    request = ResponsesRequest.from_body({"input": "Hello", "instructions": "Be brief", "user": "someone"})
    (stream,) = request.start(llm)
    found = request.answer(HEAD, [stream.answer()], llm)
    part = {"type": "output_text", "text": "Hello to you", "annotations": [], "logprobs": []}
    assert found["output"] == [
        {"id": "msg_1_0", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    ]
    assert (found["id"], found["object"], found["status"], found["created_at"]) == (
        "resp_1",
        "response",
        "completed",
        7,
    )
    assert (found["instructions"], found["user"], found["store"]) == ("Be brief", "someone", False)
    assert found["usage"] == {
        "input_tokens": 16,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 13,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 29,
    }
    assert (found["error"], found["incomplete_details"], found["tool_choice"], found["tools"]) == (
        None,
        None,
        "auto",
        [],
    )


@pytest.mark.parametrize(("limit", "status"), [(None, "completed"), (18, "incomplete")])
def test_a_call_is_an_item_and_a_cut_one_says_so(limit: int | None, status: str) -> None:
    llm = scripted_llm(replies(lambda _: 'weather\n{"city": "Köln 😀"}'))
    request = ResponsesRequest.from_body({"input": "Hello", "tools": [FLAT], "max_output_tokens": limit})
    (stream,) = request.start(llm)
    found = request.answer(HEAD, [stream.answer()], llm)
    (call,) = found["output"]
    assert (call["type"], call["name"], call["status"], found["status"]) == ("function_call", "weather", status, status)
    assert call["call_id"].startswith("call_")
    assert call["id"].startswith("fc_")
    assert '{"city": "Köln 😀"}'.startswith(call["arguments"])
    assert (found["incomplete_details"] is None) == (limit is None)
    assert found["tools"] == [FLAT]


def test_an_error_is_told_to_those_who_look_for_a_response_and_to_those_who_look_for_an_error() -> None:
    events = ResponsesEvents(HEAD, ASKED, TOKENIZER)
    found = [*events.begin(), *events.push(0, Chunk("Hel"))]
    failed, error = events.fail(ErrorAnswer(503, "the server stops", "shutting_down"))
    assert isinstance(failed.data, dict)
    assert isinstance(error.data, dict)
    assert (failed.name, error.name) == ("response.failed", "error")
    response = failed.data["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "the server stops"}
    (item,) = response["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "Hel")
    assert (error.data["message"], error.data["code"], error.data["param"]) == (
        "the server stops",
        "shutting_down",
        None,
    )
    assert error.data["error"]["message"] == "the server stops"
    assert [failed.data["sequence_number"], error.data["sequence_number"]] == [len(found), len(found) + 1]


def test_a_deadline_before_the_first_token() -> None:
    with pytest.raises(RequestError, match="deadline"):
        response_of(HEAD, ASKED, Answer("", (), "deadline"), TOKENIZER)
    events = ResponsesEvents(HEAD, ASKED, TOKENIZER)
    assert [*events.push(0, Chunk("", finish_reason="deadline"))] == []
    with pytest.raises(RequestError, match="deadline"):
        list(events.end())
