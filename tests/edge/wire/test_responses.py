"""Bodies of /v1/responses: as prompts they equal chats, and what is wrong in them is named where it was sent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.api import scripted_llm
from edge.runtime.engines.scripted import replies
from edge.runtime.errors import EdgeError
from edge.runtime.llm import LLM
from edge.wire.answers import Head
from edge.wire.chat_request import ChatRequest
from edge.wire.errors import RequestError, error_answer
from edge.wire.fields import CHAT
from edge.wire.request import WireRequest
from edge.wire.responses_fields import RESPONSES
from edge.wire.responses_request import ResponsesRequest
from tests.edge.wire.converting import (
    ITEMS,
    JSON,
    PARAMETERS,
    TEMPLATES,
    TEXTS,
    TOOL,
    Body,
    Turn,
    as_chat,
    conversations,
    model,
    strings_in,
    written,
)

HEAD = Head("resp_1", 7, "scripted", measured=True)
FLAT: Body = {"type": "function", **TOOL["function"]}
CALL: Body = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"}
HELLO: Body = {"role": "user", "content": "Hello"}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return scripted_llm(replies({"Hello": "Hello to you"}), max_context=1024)


def refused(body: Body, llm: LLM) -> Body:
    """The error object that a body gets."""
    with pytest.raises(RequestError) as found:
        ResponsesRequest.from_body(body).start(llm)
    answer = error_answer(found.value)
    assert answer.status == 400
    error: Body = answer.to_dict()["error"]
    return error


def items(*given: Any) -> Body:
    return {"input": [HELLO, *given]}


def said(*content: Any, role: str = "user") -> Body:
    return items({"type": "message", "role": role, "content": list(content)})


def asked(**fields: Any) -> Body:
    return {"input": "Hello", **fields}


TEXT: Body = {"type": "input_text", "text": "Look:"}
# Body -> code and param of its error.
REFUSED: list[tuple[Body, str, str | None]] = [
    ({}, "missing_required_parameter", "input"),
    ({"input": None}, "missing_required_parameter", "input"),
    ({"input": 5}, "invalid_type", "input"),
    ({"input": []}, "invalid_value", "input"),
    ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, "invalid_value", "input"),
    ({"input": [], "instructions": "Be brief"}, "invalid_value", "input"),
    (items("Hello"), "invalid_type", "input[1]"),
    (items({}), "missing_required_parameter", "input[1].role"),
    (items({"type": 5}), "invalid_type", "input[1].type"),
    (items({"type": "item_reference", "id": "msg_1"}), "unsupported_content", "input[1]"),
    (items({"type": "web_search_call", "id": "ws_1"}), "unsupported_content", "input[1]"),
    (items({"role": "tool", "content": "4"}), "invalid_value", "input[1].role"),
    (items({"role": 5, "content": "4"}), "invalid_type", "input[1].role"),
    (items({"role": "user"}), "missing_required_parameter", "input[1].content"),
    (items({"role": "user", "content": 5}), "invalid_type", "input[1].content"),
    (items({"role": "user", "content": "x", "tool_calls": []}), "unknown_parameter", "input[1].tool_calls"),
    (said(TEXT, {"type": "input_image", "image_url": "data:"}), "unsupported_content", "input[1].content[1]"),
    (said(TEXT, {"type": "input_file"}), "unsupported_content", "input[1].content[1]"),
    (said(TEXT, {"type": "hologram"}), "invalid_value", "input[1].content[1].type"),
    (said({"type": "input_text"}), "missing_required_parameter", "input[1].content[0].text"),
    (said({"type": "input_text", "text": 5}), "invalid_type", "input[1].content[0].text"),
    (items({**CALL, "call_id": None}), "missing_required_parameter", "input[1].call_id"),
    (items({**CALL, "call_id": 5}), "invalid_type", "input[1].call_id"),
    (items({**CALL, "name": None}), "missing_required_parameter", "input[1].name"),
    (items({**CALL, "name": 5}), "invalid_type", "input[1].name"),
    (items({**CALL, "arguments": 5}), "invalid_type", "input[1].arguments"),
    (items(CALL, {**CALL, "name": ""}), "invalid_value", "input[2].name"),
    (items(CALL, {"type": "function_call_output", "output": "4"}), "missing_required_parameter", "input[2].call_id"),
    (items(CALL, {"type": "function_call_output", "call_id": "call_9", "output": "4"}), "invalid_value",
     "input[2].call_id"),
    (items(CALL, {"type": "function_call_output", "call_id": "call_1"}), "missing_required_parameter",
     "input[2].output"),
    (items(CALL, {"type": "function_call_output", "call_id": "call_1", "output": 5}), "invalid_type",
     "input[2].output"),
    (items(CALL, {"type": "function_call_output", "call_id": "call_1", "output": [TEXT, {"type": "input_image"}]}),
     "unsupported_content", "input[2].output[1]"),
    ({"input": "x" * 1200}, "context_length_exceeded", "input"),
    ({"input": [HELLO, {"role": "user", "content": "x" * 1200}]}, "context_length_exceeded", "input"),
    (asked(instructions=5), "invalid_type", "instructions"),
    (asked(max_output_tokens=0), "invalid_value", "max_output_tokens"),
    (asked(max_output_tokens="many"), "invalid_type", "max_output_tokens"),
    (asked(temperature=3), "invalid_value", "temperature"),
    (asked(top_p=0), "invalid_value", "top_p"),
    (asked(stream="yes"), "invalid_type", "stream"),
    (asked(tools="all"), "invalid_type", "tools"),
    (asked(tools=["weather"]), "invalid_type", "tools[0]"),
    (asked(tools=[{"name": "f"}]), "missing_required_parameter", "tools[0].type"),
    (asked(tools=[{"type": "function"}]), "missing_required_parameter", "tools[0].name"),
    (asked(tools=[{"type": "web_search"}, {"type": "function", "name": 5}]), "invalid_type", "tools[1].name"),
    (asked(tools=[{"type": "web_search"}, {"type": "function", "name": "f", "parameters": 5}]), "invalid_type",
     "tools[1].parameters"),
    (asked(tools=[TOOL]), "missing_required_parameter", "tools[0].name"),
    (asked(tool_choice="required"), "invalid_value", "tool_choice"),
    (asked(tools=[{"type": "web_search"}], tool_choice="required"), "invalid_value", "tool_choice"),
    (asked(tools=[FLAT], tool_choice={"type": "function", "name": "other"}), "invalid_value", "tool_choice"),
    (asked(tools=[FLAT], tool_choice={"type": "web_search"}), "invalid_value", "tool_choice"),
    (asked(text={"form": 1}), "unknown_parameter", "text"),
    (asked(text={"format": "json"}), "invalid_type", "text.format"),
    (asked(text={"format": {}}), "missing_required_parameter", "text.format.type"),
    (asked(text={"format": {"type": "xml"}}), "invalid_value", "text.format.type"),
    (asked(text={"format": {"type": "json_schema", "name": "x"}}), "missing_required_parameter", "text.format.schema"),
    (asked(text={"format": {"type": "json_schema", "schema": 5}}), "invalid_type", "text.format.schema"),
    (asked(text={"format": {"type": "json_schema", "schema": {"type": "colour"}}}), "invalid_schema",
     "text.format.schema"),
    (asked(text={"format": {"type": "json_object"}}, regex="a"), "invalid_value", "regex"),
    (asked(include=[5]), "invalid_type", "include[0]"),
    (asked(include=["message.output_text.logprobs"]), "unsupported_parameter", "include[0]"),
    (asked(previous_response_id="resp_0"), "unsupported_parameter", "previous_response_id"),
    (asked(conversation="conv_1"), "unsupported_parameter", "conversation"),
    (asked(background=True), "unsupported_parameter", "background"),
    (asked(prompt={"id": "p"}), "unsupported_parameter", "prompt"),
    (asked(truncation="auto"), "unsupported_parameter", "truncation"),
    (asked(top_logprobs=2), "unsupported_parameter", "top_logprobs"),
    (asked(messages=[HELLO]), "unknown_parameter", "messages"),
    (asked(n=2), "unknown_parameter", "n"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "code", "param"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_named_where_it_was_sent(body: Body, code: str, param: str | None, llm: LLM) -> None:
    error = refused(body, llm)
    assert (error["code"], error["param"]) == (code, param), error
    for word in ("messages[", "response_format", "max_completion_tokens", ".function", "tool_call"):
        assert word not in error["message"] or word in json.dumps(body), error
    told_otherwise = ("context_length_exceeded", "unknown_parameter", "invalid_schema")
    assert code in told_otherwise or (error["param"] or "") in error["message"]


def test_a_prompt_that_does_not_fit_has_the_words_that_clients_look_for(llm: LLM) -> None:
    error = refused({"input": "x" * 1200}, llm)
    assert error["message"].startswith("This model's maximum context length is 1024 tokens. However, your input ")
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (1202, 1024)


def test_what_clients_send_without_effect(llm: LLM) -> None:
    seen: list[Body] = [
        # Codex
        {"instructions": "", "tools": [{"type": "custom", "name": "apply_patch"}, {"type": "web_search"}],
         "tool_choice": "auto", "parallel_tool_calls": False, "reasoning": {"effort": "medium", "summary": "auto"},
         "store": False, "stream": True, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
         "text": {"verbosity": "low"}, "client_metadata": {"a": "b"}},
        # openai-agents
        {"include": [], "previous_response_id": None, "truncation": None, "metadata": None, "temperature": None},
        {"truncation": "disabled", "background": False, "top_logprobs": 0, "text": {"format": {"type": "text"}},
         "user": "u", "service_tier": "auto", "max_tool_calls": 3, "stream_options": {"include_obfuscation": False}},
        {"tool_choice": "none", "tools": []},
        {"tool_choice": "none", "tools": [FLAT]},
    ]  # fmt: skip
    for fields in seen:
        request: WireRequest = ResponsesRequest.from_body(asked(**fields))
        (stream,) = request.start(llm)
        assert stream.text() == "Hello to you", fields


def test_settings_reach_the_chat() -> None:
    body = asked(
        model="m", stream=True, temperature=0.5, top_p=0.9, top_k=3, max_output_tokens=7, seed=1, stop="x", min_p=0.1,
        text={"format": {"type": "json_schema", "name": "a", "strict": True, "schema": PARAMETERS}},
    )  # fmt: skip
    chat = {
        "messages": [HELLO], "model": "m", "stream": True, "temperature": 0.5, "top_p": 0.9, "top_k": 3,
        "max_tokens": 7, "seed": 1, "stop": "x", "min_p": 0.1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": PARAMETERS}},
    }  # fmt: skip
    found, expected = ResponsesRequest.from_body(body).settings, ChatRequest.from_body(chat).settings
    assert found.options == expected.options
    assert (found.model, found.stream, found.n) == ("m", True, 1)


def as_input(turns: list[Turn], question: str) -> list[Body]:
    """A conversation as a client of this protocol sends it: what it got back, with results after it."""
    found = list[Body]()
    for turn in turns:
        parts = [{"type": "input_text", "text": part} for part in turn.question]
        found.append({"type": "message", "role": "user", "content": parts})
        found.append({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"})
        if turn.said is not None:
            found.append(_answered(turn.said))
        for id_, arguments in turn.calls:
            found.append({**CALL, "id": "fc_1", "call_id": id_, "status": "completed", "arguments": written(arguments)})
        for (id_, _), result in zip(turn.calls, turn.results, strict=True):
            output = [{"type": "input_text", "text": result}] if len(result) % 2 else result
            found.append({"type": "function_call_output", "call_id": id_, "output": output})
        found.append(_answered(turn.answer))
    return [*found, {"role": "user", "content": question}]


def _answered(text: str) -> Body:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=25, deadline=None)
@given(turns=conversations(), system=st.none() | TEXTS, question=TEXTS, with_tools=st.booleans())
def test_a_conversation_gives_the_prompt_of_the_same_chat(
    template: str, turns: list[Turn], system: str | None, question: str, *, with_tools: bool
) -> None:
    llm = model(template)
    tools = {"tools": [{"type": "web_search"}, {**FLAT, "strict": None}]} if with_tools else {}
    found = ResponsesRequest.from_body({"input": as_input(turns, question), "instructions": system, **tools}).chat
    expected = as_chat(system, turns, question)
    chat_tools = [TOOL] if with_tools else None
    assert llm.encode_chat(found.messages, tools=found.tools) == llm.encode_chat(expected, tools=chat_tools)


BODIES = st.builds(
    lambda given, fields: {"input": given, **fields, "max_output_tokens": 3},
    ITEMS | st.just("Hello") | st.lists(st.sampled_from([HELLO, CALL]), max_size=3),
    st.dictionaries(st.sampled_from(list(RESPONSES)), JSON, max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(body=BODIES)
def test_any_body_is_answered_or_refused_in_its_own_words(body: Body, llm: LLM) -> None:
    try:
        request = ResponsesRequest.from_body(body)
        streams = request.start(llm)
    except EdgeError as error:
        _check_error(error, body)
        return
    try:
        answers = [stream.answer() for stream in streams]
    except EdgeError as error:
        _check_error(request.refusal(error), body)
        return
    json.dumps(request.answer(HEAD, answers, llm), allow_nan=False).encode()


def _check_error(error: EdgeError, body: Body) -> None:
    answer = error_answer(error)
    assert answer.status == 400, error
    json.dumps(answer.to_dict(), ensure_ascii=False).encode()
    assert answer.param is not None
    assert re.split(r"[.\[]", answer.param)[0] in {*RESPONSES, *body}
    assert "messages[" not in answer.message or any("messages[" in text for text in strings_in(body))


def test_the_page_names_every_field_where_it_belongs() -> None:
    page = (Path(__file__).parents[3] / "docs" / "clients.md").read_text(encoding="utf-8")
    (row,) = [line.split("|")[2:-1] for line in page.splitlines() if line.startswith("| `/v1/responses`")]
    for use, cell in zip(("used", "accepted", "unsupported"), row, strict=True):
        told = set(re.findall(r"`(\w+)`", cell))
        assert told == {name for name, field in RESPONSES.items() if field.use == use}


def test_what_is_like_a_chat_is_taken_from_its_table() -> None:
    for name in {*RESPONSES} & {*CHAT}:
        if RESPONSES[name].use == CHAT[name].use == "used" and name not in ("tools", "tool_choice"):
            assert RESPONSES[name] is CHAT[name]
