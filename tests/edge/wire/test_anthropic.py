"""Bodies of /v1/messages: as prompts they equal chats, and what is wrong in them is named where it was sent."""

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
from edge.wire.anthropic_fields import ANTHROPIC
from edge.wire.anthropic_request import AnthropicRequest, count_tokens
from edge.wire.chat_request import ChatRequest
from edge.wire.errors import RequestError, error_answer
from edge.wire.request import WireRequest
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
)

HEAD = Head("msg_1", 7, "scripted", measured=True)
MINE: Body = {"name": "weather", "description": "Tells the weather", "input_schema": PARAMETERS}
USE: Body = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}}
RESULT: Body = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}
HELLO: Body = {"role": "user", "content": "Hello"}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return scripted_llm(replies({"Hello": "Hello to you"}), max_context=1024)


def asked(**fields: Any) -> Body:
    return {"messages": [HELLO], **fields}


def said(*blocks: Any) -> Body:
    return {"messages": [HELLO, {"role": "user", "content": list(blocks)}]}


def used(*blocks: Any, result: Body = RESULT) -> Body:
    answered = {"role": "user", "content": [{"type": "text", "text": "Here:"}, result]}
    return {"messages": [HELLO, {"role": "assistant", "content": list(blocks)}, answered]}


TEXT: Body = {"type": "text", "text": "Look:"}
# Body -> code and param of its error.
REFUSED: list[tuple[Body, str, str]] = [
    ({}, "missing_required_parameter", "messages"),
    ({"messages": "Hello"}, "invalid_type", "messages"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": [], "system": "Be brief"}, "invalid_value", "messages"),
    ({"messages": ["Hello"]}, "invalid_type", "messages[0]"),
    ({"messages": [{"content": "Hello"}]}, "missing_required_parameter", "messages[0].role"),
    ({"messages": [{"content": "Hello"}], "system": "x"}, "missing_required_parameter", "messages[0].role"),
    ({"messages": [{"role": 5, "content": "Hello"}]}, "invalid_type", "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "Hello"}]}, "invalid_value", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}], "system": "x"}, "invalid_type", "messages[0].content"),
    ({"messages": [{**HELLO, "name": "me"}]}, "unknown_parameter", "messages[0].name"),
    ({"messages": [HELLO, {"role": "assistant", "content": "He"}]}, "unsupported_content", "messages[1]"),
    (said(TEXT, "x"), "invalid_type", "messages[1].content[1]"),
    (said(TEXT, {}), "missing_required_parameter", "messages[1].content[1].type"),
    (said(TEXT, {"type": "hologram"}), "invalid_value", "messages[1].content[1].type"),
    (said(TEXT, {"type": "image", "source": {}}), "unsupported_content", "messages[1].content[1]"),
    (said(TEXT, {"type": "document", "source": {}}), "unsupported_content", "messages[1].content[1]"),
    (said(TEXT, {"type": "text"}), "missing_required_parameter", "messages[1].content[1].text"),
    (said(TEXT, {"type": "text", "text": 5}), "invalid_type", "messages[1].content[1].text"),
    (said(TEXT, {**TEXT, "bold": True}), "unknown_parameter", "messages[1].content[1].bold"),
    (said(USE), "invalid_value", "messages[1].content[0]"),
    (used(RESULT), "invalid_value", "messages[1].content[0]"),
    (used(TEXT, {**USE, "id": None}), "missing_required_parameter", "messages[1].content[1].id"),
    (used(TEXT, {**USE, "name": None}), "missing_required_parameter", "messages[1].content[1].name"),
    (used(TEXT, {**USE, "name": 5}), "invalid_type", "messages[1].content[1].name"),
    (used(TEXT, {**USE, "input": None}), "missing_required_parameter", "messages[1].content[1].input"),
    (used(TEXT, {**USE, "input": "{}"}), "invalid_type", "messages[1].content[1].input"),
    (used(USE, result={**RESULT, "tool_use_id": None}), "missing_required_parameter",
     "messages[2].content[1].tool_use_id"),
    (used(USE, result={**RESULT, "tool_use_id": "toolu_9"}), "invalid_value", "messages[2].content[1].tool_use_id"),
    (used(USE, result={**RESULT, "content": 5}), "invalid_type", "messages[2].content[1].content"),
    (used(USE, result={**RESULT, "content": [TEXT, {"type": "image"}]}), "unsupported_content",
     "messages[2].content[1].content[1]"),
    (used(USE, result={**RESULT, "content": [TEXT, {"type": "text", "text": 5}]}), "invalid_type",
     "messages[2].content[1].content[1].text"),
    (asked(system=5), "invalid_type", "system"),
    (asked(system=["x"]), "invalid_type", "system[0]"),
    (asked(system=[TEXT, {"type": "text", "text": 5}]), "invalid_type", "system[1].text"),
    (asked(system=[TEXT, {"type": "image"}]), "unsupported_content", "system[1]"),
    (asked(max_tokens=0), "invalid_value", "max_tokens"),
    (asked(stop_sequences="x"), "invalid_type", "stop_sequences"),
    (asked(stop_sequences=["x", ""]), "invalid_value", "stop_sequences"),
    (asked(stop_sequences=["x"] * 17), "invalid_value", "stop_sequences"),
    (asked(temperature=3), "invalid_value", "temperature"),
    (asked(top_k=-2), "invalid_value", "top_k"),
    (asked(thinking={"type": "enabled", "budget_tokens": 1024}), "unsupported_parameter", "thinking"),
    (asked(tools=["weather"]), "invalid_type", "tools[0]"),
    (asked(tools=[{"type": "bash_20250124", "name": "bash"}]), "unsupported_parameter", "tools[0].type"),
    (asked(tools=[MINE, {"name": "f"}]), "missing_required_parameter", "tools[1].input_schema"),
    (asked(tools=[MINE, {"input_schema": {}}]), "missing_required_parameter", "tools[1].name"),
    (asked(tools=[{**MINE, "name": 5}]), "invalid_type", "tools[0].name"),
    (asked(tools=[{**MINE, "input_schema": 5}]), "invalid_type", "tools[0].input_schema"),
    (asked(tool_choice="any"), "invalid_type", "tool_choice"),
    (asked(tool_choice={"type": "some"}), "invalid_value", "tool_choice.type"),
    (asked(tool_choice={}), "missing_required_parameter", "tool_choice.type"),
    (asked(tools=[MINE], tool_choice={"type": "tool"}), "missing_required_parameter", "tool_choice.name"),
    (asked(tools=[MINE], tool_choice={"type": "tool", "name": "other"}), "invalid_value", "tool_choice"),
    (asked(tool_choice={"type": "any"}), "invalid_value", "tool_choice"),
    (asked(output_config={"format": {"type": "xml"}}), "invalid_value", "output_config.format.type"),
    (asked(output_config={"format": {"type": "json_schema"}}), "missing_required_parameter",
     "output_config.format.schema"),
    (asked(output_config={"format": {"type": "json_schema", "schema": {"type": "colour"}}}), "invalid_schema",
     "output_config.format.schema"),
    (asked(container="c"), "unsupported_parameter", "container"),
    (asked(mcp_servers=[{"url": "x"}]), "unsupported_parameter", "mcp_servers"),
    (asked(stop=["x"]), "unknown_parameter", "stop"),
    ({"messages": [{"role": "user", "content": "x" * 1200}]}, "context_length_exceeded", "messages"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "code", "param"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_named_where_it_was_sent(body: Body, code: str, param: str, llm: LLM) -> None:
    with pytest.raises(RequestError) as found:
        AnthropicRequest.from_body(body).start(llm)
    answer = error_answer(found.value)
    assert (answer.status, answer.code, answer.param) == (400, code, param), answer
    for word in ("tool_call", "response_format", ".function"):
        assert word not in answer.message or word in json.dumps(body), answer
    told_otherwise = ("context_length_exceeded", "unknown_parameter", "invalid_schema")
    assert code in told_otherwise or param in answer.message


def test_what_clients_send_without_effect(llm: LLM) -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    seen: list[Body] = [
        {"max_tokens": 64, "metadata": {"user_id": "u"}, "thinking": {"type": "disabled"}, "service_tier": "auto"},
        {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}, "context_management": {"edits": []}},
        {"tools": [], "stop_sequences": [], "system": [], "mcp_servers": [], "top_k": -1, "max_tokens": None},
        {"tools": [{**MINE, **cached, "type": "custom", "strict": False, "input_examples": [{}]}],
         "tool_choice": {"type": "none"}},
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello", **cached, "citations": []}]}]},
    ]  # fmt: skip
    for fields in seen:
        request: WireRequest = AnthropicRequest.from_body(asked(**fields))
        (stream,) = request.start(llm)
        assert stream.text() == "Hello to you", fields


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "weather"}, {"type": "function", "function": {"name": "weather"}}),
    ],
)
def test_settings_reach_the_chat(choice: Body, expected: object) -> None:
    body = asked(
        model="m", stream=True, temperature=0.5, top_p=0.9, top_k=3, max_tokens=7, seed=1, stop_sequences=["x"],
        tools=[MINE], tool_choice=choice, output_config={"format": {"type": "json_schema", "schema": PARAMETERS}},
    )  # fmt: skip
    chat = {
        "messages": [HELLO], "model": "m", "stream": True, "temperature": 0.5, "top_p": 0.9, "top_k": 3,
        "max_tokens": 7, "seed": 1, "stop": ["x"],
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": PARAMETERS}},
    }  # fmt: skip
    found = AnthropicRequest.from_body(body)
    wanted = ChatRequest.from_body(chat).settings
    assert found.settings.options == wanted.options
    assert (found.settings.model, found.settings.stream, found.settings.n) == ("m", True, 1)
    assert (found.chat.tools, found.chat.tool_choice) == ([TOOL], expected)


def as_messages(turns: list[Turn], question: str) -> list[Body]:
    """A conversation as a client of this protocol sends it; results and the next question share a message."""
    found = list[Body]()
    for turn in turns:
        found.append({"role": "user", "content": [{"type": "text", "text": part} for part in turn.question]})
        if turn.calls:
            blocks: list[Body] = [{"type": "thinking", "thinking": "Hm", "signature": "x"}]
            blocks += [] if turn.said is None else [{"type": "text", "text": turn.said}]
            blocks += [{**USE, "id": id_, "input": arguments} for id_, arguments in turn.calls]
            found.append({"role": "assistant", "content": blocks})
            results: list[Body] = []
            for (id_, _), result in zip(turn.calls, turn.results, strict=True):
                content = [{"type": "text", "text": result}] if len(result) % 2 else result
                results.append({**RESULT, "tool_use_id": id_, "content": content, "is_error": False})
            found.append({"role": "user", "content": results})
        found.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    return [*found, {"role": "user", "content": question}]


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=25, deadline=None)
@given(turns=conversations(), system=st.none() | TEXTS, question=TEXTS, with_tools=st.booleans())
def test_a_conversation_gives_the_prompt_of_the_same_chat(
    template: str, turns: list[Turn], system: str | None, question: str, *, with_tools: bool
) -> None:
    llm = model(template)
    tools = {"tools": [MINE]} if with_tools else {}
    body = {"messages": as_messages(turns, question), "system": system, **tools}
    found = AnthropicRequest.from_body(body).chat
    expected = llm.encode_chat(as_chat(system, turns, question), tools=[TOOL] if with_tools else None)
    assert llm.encode_chat(found.messages, tools=found.tools) == expected
    assert count_tokens(body, llm) == {"input_tokens": len(expected)}


def test_a_question_beside_results_comes_after_them() -> None:
    llm = model("openai")
    body = used(TEXT, USE, {**USE, "id": "toolu_2"})
    body["messages"][2]["content"] = [RESULT, {**RESULT, "tool_use_id": "toolu_2"}, {"type": "text", "text": "And?"}]
    call: Body = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
    expected: list[Body] = [
        HELLO,
        {"role": "assistant", "content": "Look:", "tool_calls": [{**call, "id": f"toolu_{i}"} for i in (1, 2)]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "sunny"},
        {"role": "user", "content": "And?"},
    ]
    assert llm.encode_chat(AnthropicRequest.from_body(body).chat.messages) == llm.encode_chat(expected)


def test_counting_refuses_what_answering_refuses(llm: LLM) -> None:
    for body, code, param in REFUSED:
        if code in ("context_length_exceeded", "invalid_schema") or param.startswith("tool_choice"):
            continue  # what the answer's form is does not matter here, nor whether it has room
        with pytest.raises(RequestError) as found:
            count_tokens(body, llm)
        assert (found.value.code, found.value.param) == (code, param)


BODIES = st.builds(
    lambda messages, fields: {"messages": messages, **fields, "max_tokens": 3},
    ITEMS | st.just([HELLO]) | st.builds(lambda content: [{"role": "user", "content": content}], ITEMS),
    st.dictionaries(st.sampled_from(list(ANTHROPIC)), JSON, max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(body=BODIES)
def test_any_body_is_answered_or_refused_in_its_own_words(body: Body, llm: LLM) -> None:
    try:
        request = AnthropicRequest.from_body(body)
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
    assert re.split(r"[.\[]", answer.param)[0] in {*ANTHROPIC, *body}


def test_the_page_names_every_field_where_it_belongs() -> None:
    page = (Path(__file__).parents[3] / "docs" / "clients.md").read_text(encoding="utf-8")
    (row,) = [line.split("|")[2:-1] for line in page.splitlines() if line.startswith("| `/v1/messages`")]
    for use, cell in zip(("used", "accepted", "unsupported"), row, strict=True):
        told = set(re.findall(r"`(\w+)`", cell))
        assert told == {name for name, field in ANTHROPIC.items() if field.use == use}
