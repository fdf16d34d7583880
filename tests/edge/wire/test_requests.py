"""Bodies of the protocol: what is taken, what is refused and in which words, and that nothing else ever happens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.api import scripted_llm
from edge.runtime.engines.scripted import noise, replies
from edge.runtime.errors import EdgeError
from edge.runtime.llm import LLM
from edge.runtime.settings import GENERATION_NAMES, SAMPLING_NAMES
from edge.wire.answers import Head
from edge.wire.body import read_body
from edge.wire.chat_request import ChatRequest
from edge.wire.completion_request import MAX_PROMPTS, CompletionRequest
from edge.wire.errors import RequestError, error_answer
from edge.wire.fields import CHAT, COMPLETION, Field

Body = dict[str, Any]
HELLO: list[Body] = [{"role": "user", "content": "Hello"}]
WEATHER: Body = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL: Body = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
HEAD = Head("chatcmpl-1", 0, "scripted")


@pytest.fixture(scope="module")
def llm() -> LLM:
    return scripted_llm(replies({"Hello": "Hello to you"}), max_context=256)


def chat(**fields: Any) -> Body:
    return {"messages": HELLO, **fields}


def refused(body: Body, llm: LLM, kind: type[ChatRequest] | type[CompletionRequest] = ChatRequest) -> Body:
    """The error object that a body gets."""
    with pytest.raises(RequestError) as found:
        kind.from_body(body).start(llm)
    answer = error_answer(found.value)
    assert answer.status == 400
    error: Body = answer.to_dict()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


def part(kind: str) -> list[Body]:
    return [{"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": kind}]}]


# Body -> code and param of its error.
REFUSED: list[tuple[Body, str, str | None]] = [
    ({}, "missing_required_parameter", "messages"),
    ({"messages": None}, "missing_required_parameter", "messages"),
    ({"messages": "Hello"}, "invalid_type", "messages"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": ["Hello"]}, "invalid_type", "messages[0]"),
    ({"messages": [{"content": "Hello"}]}, "missing_required_parameter", "messages[0].role"),
    ({"messages": [{"role": 5, "content": "Hello"}]}, "invalid_type", "messages[0].role"),
    ({"messages": [{"role": "boss", "content": "Hello"}]}, "invalid_value", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "invalid_type", "messages[0].content"),
    ({"messages": [*HELLO, {"role": "user", "content": [{}]}]}, "missing_required_parameter",
     "messages[1].content[0].type"),
    ({"messages": part("image_url")}, "unsupported_content", "messages[0].content[1]"),
    ({"messages": part("input_audio")}, "unsupported_content", "messages[0].content[1]"),
    ({"messages": part("file")}, "unsupported_content", "messages[0].content[1]"),
    ({"messages": part("hologram")}, "invalid_value", "messages[0].content[1].type"),
    ({"messages": [*HELLO, {"role": "tool", "tool_call_id": "call_9", "content": "4"}]}, "invalid_value",
     "messages[1].tool_call_id"),
    (chat(temperature="hot"), "invalid_type", "temperature"),
    (chat(temperature=True), "invalid_type", "temperature"),
    (chat(temperature=2.01), "invalid_value", "temperature"),
    (chat(temperature=-1), "invalid_value", "temperature"),
    (chat(top_p=0), "invalid_value", "top_p"),
    (chat(n=0), "invalid_value", "n"),
    (chat(n=9), "invalid_value", "n"),
    (chat(n=1.5), "invalid_type", "n"),
    (chat(stop=["a"] * 17), "invalid_value", "stop"),
    (chat(stop=["a", ""]), "invalid_value", "stop"),
    (chat(stop=5), "invalid_type", "stop"),
    (chat(max_tokens=0), "invalid_value", "max_tokens"),
    (chat(max_completion_tokens=0), "invalid_value", "max_completion_tokens"),
    (chat(max_completion_tokens=5, max_tokens=6), "invalid_value", "max_tokens"),
    (chat(min_tokens=9, max_tokens=5), "invalid_value", "min_tokens"),
    (chat(presence_penalty=3), "invalid_value", "presence_penalty"),
    (chat(logit_bias={"x": 1}), "invalid_value", "logit_bias"),
    (chat(logit_bias={"1": 101}), "invalid_value", "logit_bias"),
    (chat(logit_bias=[]), "invalid_type", "logit_bias"),
    (chat(top_logprobs=2), "invalid_value", "top_logprobs"),
    (chat(logprobs=True, top_logprobs=21), "invalid_value", "top_logprobs"),
    (chat(logprobs=1), "invalid_type", "logprobs"),
    (chat(seed=2**63), "invalid_value", "seed"),
    (chat(seed="x"), "invalid_type", "seed"),
    (chat(stream="yes"), "invalid_type", "stream"),
    (chat(stream_options={"include_usage": 1}), "invalid_type", "stream_options.include_usage"),
    (chat(top_k=-2), "invalid_value", "top_k"),
    (chat(stop_token_ids=["a"]), "invalid_value", "stop_token_ids"),
    (chat(deadline_s=0), "invalid_value", "deadline_s"),
    (chat(tools="all"), "invalid_type", "tools"),
    (chat(tools=["weather"]), "invalid_type", "tools[0]"),
    (chat(tools=[{"type": "magic"}]), "invalid_value", "tools[0].type"),
    (chat(tools=[{"type": "function"}]), "missing_required_parameter", "tools[0].function"),
    (chat(tools=[{"type": "function", "function": {}}]), "missing_required_parameter", "tools[0].function.name"),
    (chat(tools=[{"type": "function", "function": {"name": "f", "parameters": 5}}]), "invalid_type",
     "tools[0].function.parameters"),
    (chat(tool_choice="required"), "invalid_value", "tool_choice"),
    (chat(tools=[WEATHER], tool_choice="other"), "invalid_value", "tool_choice"),
    (chat(tools=[WEATHER], tool_choice=5), "invalid_type", "tool_choice"),
    (chat(response_format="json"), "invalid_type", "response_format"),
    (chat(response_format={}), "missing_required_parameter", "response_format.type"),
    (chat(response_format={"type": "xml"}), "invalid_value", "response_format.type"),
    (chat(response_format={"type": "json_schema"}), "missing_required_parameter", "response_format.json_schema"),
    (chat(response_format={"type": "json_schema", "json_schema": {"name": "x"}}), "missing_required_parameter",
     "response_format.json_schema.schema"),
    (chat(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "colour"}}}), "invalid_schema",
     "response_format.json_schema.schema"),
    (chat(regex="("), "invalid_schema", "regex"),
    (chat(grammar="start: ("), "invalid_schema", "grammar"),
    (chat(structured_outputs={"choice": []}), "invalid_schema", "structured_outputs.choice"),
    (chat(structured_outputs={"choice": 5}), "invalid_type", "structured_outputs.choice"),
    (chat(structured_outputs={"yaml": 1}), "unknown_parameter", "structured_outputs"),
    (chat(structured_outputs={"regex": "a", "json_object": True}), "invalid_value", "structured_outputs"),
    (chat(regex="a", response_format={"type": "json_object"}), "invalid_value", "regex"),
    (chat(regex="a", ignore_eos=True), "invalid_value", "ignore_eos"),
    (chat(chat_template_kwargs={"messages": []}), "invalid_value", "chat_template_kwargs.messages"),
    (chat(chat_template_kwargs=[]), "invalid_type", "chat_template_kwargs"),
    (chat(temprature=1), "unknown_parameter", "temprature"),
    (chat(echo=True), "unknown_parameter", "echo"),
    (chat(audio={"voice": "x"}), "unsupported_parameter", "audio"),
    (chat(modalities=["text", "audio"]), "unsupported_parameter", "modalities"),
    (chat(web_search_options={}), "unsupported_parameter", "web_search_options"),
    (chat(functions=[{"name": "f"}]), "unsupported_parameter", "functions"),
    (chat(best_of=2), "unsupported_parameter", "best_of"),
    (chat(continue_final_message=True), "invalid_value", "messages[0].role"),
    (chat(continue_final_message=1), "invalid_type", "continue_final_message"),
    (chat(continue_final_message=True, add_generation_prompt=True), "invalid_value", "add_generation_prompt"),
    (chat(add_generation_prompt=False), "unsupported_parameter", "add_generation_prompt"),
    (chat(continue_final_message=True, tools=[WEATHER], tool_choice="required",
          messages=[*HELLO, {"role": "assistant", "content": "a"}]), "invalid_value", "tool_choice"),
    (chat(continue_final_message=True, messages=[*HELLO, {"role": "assistant", "tool_calls": [CALL]}]),
     "invalid_value", "messages[1].tool_calls"),
    ({"messages": [{"role": "user", "content": "x" * 300}]}, "context_length_exceeded", "messages"),
]  # fmt: skip
COMPLETIONS: list[tuple[Body, str, str | None]] = [
    ({}, "missing_required_parameter", "prompt"),
    ({"prompt": 5}, "invalid_type", "prompt"),
    ({"prompt": ""}, "invalid_value", "prompt"),
    ({"prompt": []}, "invalid_value", "prompt"),
    ({"prompt": ["a", 5]}, "invalid_type", "prompt[1]"),
    ({"prompt": ["a", ""]}, "invalid_value", "prompt[1]"),
    ({"prompt": ["a", []]}, "invalid_value", "prompt[1]"),
    ({"prompt": [[1, "a"]]}, "invalid_type", "prompt[0]"),
    ({"prompt": [1, -1]}, "invalid_value", "prompt[1]"),
    ({"prompt": [1, 99999]}, "invalid_value", "prompt"),
    ({"prompt": ["a"] * (MAX_PROMPTS + 1)}, "invalid_value", "prompt"),
    ({"prompt": "a", "logprobs": 6}, "invalid_value", "logprobs"),
    ({"prompt": "a", "logprobs": True}, "invalid_type", "logprobs"),
    ({"prompt": "a", "max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"prompt": "a", "max_tokens": 0, "logprobs": 1}, "invalid_value", "max_tokens"),
    ({"prompt": "a", "max_tokens": 0, "echo": True, "min_tokens": 1}, "invalid_value", "min_tokens"),
    ({"prompt": "a", "logprobs": 6, "echo": True}, "invalid_value", "logprobs"),
    ({"prompt": "a", "prompt_logprobs": 1}, "unsupported_parameter", "prompt_logprobs"),
    ({"prompt": "x" * 257, "max_tokens": 0, "echo": True}, "context_length_exceeded", "prompt"),
    ({"prompt": "a", "suffix": "b"}, "unsupported_parameter", "suffix"),
    ({"prompt": "a", "messages": HELLO}, "unknown_parameter", "messages"),
    ({"prompt": ["a", "x" * 300]}, "context_length_exceeded", "prompt[1]"),
]


@pytest.mark.parametrize(("body", "code", "param"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_wrong_body_is_told_what_is_wrong_and_where(body: Body, code: str, param: str | None, llm: LLM) -> None:
    error = refused(body, llm)
    assert (error["code"], error["param"]) == (code, param), error


@pytest.mark.parametrize(("body", "code", "param"), COMPLETIONS, ids=lambda value: str(value)[:60])
def test_so_is_one_for_completions(body: Body, code: str, param: str | None, llm: LLM) -> None:
    error = refused(body, llm, CompletionRequest)
    assert (error["code"], error["param"]) == (code, param), error


def test_messages_name_fields_and_not_settings(llm: LLM) -> None:
    assert refused(chat(max_tokens=0), llm)["message"].startswith("max_tokens is 0, expected a whole number, 1")
    assert "max_completion_tokens, 5" in refused(chat(max_completion_tokens=5, min_tokens=9), llm)["message"]
    assert "did you mean 'temperature'?" in refused(chat(temprature=1), llm)["message"]
    for body, *_ in REFUSED:
        message = refused(body, llm)["message"]
        for setting in ("max_new_tokens", "min_new_tokens", "ignore_stop_ids", "template_variables"):
            assert setting not in message, message


def test_a_prompt_that_does_not_fit_has_the_words_and_figures_that_clients_look_for(llm: LLM) -> None:
    error = refused({"messages": [{"role": "user", "content": "x" * 300}]}, llm)
    assert error["message"].startswith("This model's maximum context length is 256 tokens. However, ")
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (302, 256)


def test_what_a_template_refuses(llm: LLM) -> None:
    refusing = scripted_llm(noise())
    assert refusing.template is not None
    source = "{{ raise_exception('only one turn, please') }}"
    refusing = LLM.from_engine(
        refusing.engine, refusing.tokenizer, template=type(refusing.template)(source, refusing.tokenizer.markup)
    )
    error = refused(chat(), refusing)
    assert (error["code"], error["param"]) == ("invalid_messages", "messages")
    assert "only one turn, please" in error["message"]


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"a": NaN}', b'{"a": "\\ud800"}', b"[" * 999, b"1e999"]
)
def test_what_is_not_json(raw: bytes) -> None:
    with pytest.raises(RequestError) as found:
        read_body(raw)
    assert found.value.code == "invalid_json"


@pytest.mark.parametrize("table", [CHAT, COMPLETION], ids=["chat", "completions"])
def test_the_table_names_settings_that_exist(table: dict[str, Field]) -> None:
    for field in table.values():
        assert not field.setting or field.setting in SAMPLING_NAMES | GENERATION_NAMES
        assert bool(field.types) == (field.use == "used")


def test_the_page_names_every_field_where_it_belongs() -> None:
    page = (Path(__file__).parents[3] / "docs" / "batch.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith(("| both", "| chat", "| compl"))]
    columns = {"used": 1, "accepted": 2, "unsupported": 3}
    streamed = {"stream", "stream_options", "return_progress", "timings_per_token"}
    for table, kinds in ((CHAT, ("both", "chat")), (COMPLETION, ("both", "completions"))):
        mine = [row for row in rows if row[0].strip().startswith(kinds)]
        for use, column in columns.items():
            told = {name for row in mine for name in re.findall(r"`(\w+)`", row[column])}
            assert told == {name for name, field in table.items() if field.use == use} - streamed


@pytest.mark.parametrize("name", CHAT)
def test_null_and_neutral_values_are_absent(name: str) -> None:
    expected = ChatRequest.from_body(chat())
    for value in (None, *CHAT[name].absent):
        if name == "messages":
            continue
        found = ChatRequest.from_body(chat(**{name: value}))
        assert found.settings == expected.settings
        assert (found.tools, found.tool_choice) == (expected.tools, expected.tool_choice)


def test_what_clients_were_seen_to_send(llm: LLM) -> None:
    seen: list[Body] = [
        {"parallel_tool_calls": False},
        {"seed": None, "logprobs": None, "top_p": 1, "n": 1, "frequency_penalty": 0, "stream": False},
        {"include": []},
        {"store": False, "metadata": {"a": "b"}, "user": "u", "safety_identifier": "s", "prompt_cache_key": "k"},
        {"service_tier": "auto", "max_tokens": -1, "top_k": -1, "seed": -1, "stop": "", "tools": []},
        {"response_format": {"type": "text"}, "modalities": ["text"], "reasoning_effort": "low"},
        {"tool_choice": "none"},
    ]
    for fields in seen:
        (stream,) = ChatRequest.from_body(chat(**fields)).start(llm)
        assert stream.text() == "Hello to you", fields


def test_settings_reach_the_runtime() -> None:
    body = chat(
        temperature=0.5, top_p=0.9, max_tokens=7, max_completion_tokens=7, stop="\n", logit_bias={"65": -5}, seed=-1,
        top_k=-1, min_p=0.1, repetition_penalty=1.1, min_tokens=2, stop_token_ids=[3], logprobs=True, top_logprobs=4,
        deadline_s=60, regex="a+", n=3, chat_template_kwargs={"a": 1}, return_token_ids=True,
    )  # fmt: skip
    found = ChatRequest.from_body(body)
    options = dict(found.settings.options)
    assert options.pop("constraint").text == "a+"  # type: ignore[attr-defined]
    assert options == {
        "temperature": 0.5, "top_p": 0.9, "max_new_tokens": 7, "stop": ("\n",), "logit_bias": {"65": -5},
        "seed": 2**62 - 1, "top_k": 0, "min_p": 0.1, "repetition_penalty": 1.1, "min_new_tokens": 2,
        "stop_token_ids": [3], "logprobs": 4, "deadline_s": 60,
    }  # fmt: skip
    assert (found.settings.n, found.settings.token_ids, found.template_variables) == (3, True, {"a": 1})


FAST: Body = {"max_tokens": 3, "max_completion_tokens": None}
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.floats(-3, 3), st.sampled_from(["", "auto", "text", "\ud800"]),
    st.integers(-(2**70), 2**70), st.floats(),
)  # fmt: skip
KEYS = st.sampled_from([
    "type", "role", "content", "text", "function", "name", "arguments", "tool_calls", "json_schema", "schema", "json",
    "parameters", "include_usage", "tool_call_id", "65", "x",
])  # fmt: skip
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
MESSAGES = st.just(HELLO) | st.lists(st.dictionaries(KEYS, JSON, max_size=4), max_size=3) | JSON
BODIES = st.builds(
    lambda messages, fields: {"messages": messages, **fields, **FAST},
    MESSAGES,
    st.dictionaries(st.sampled_from(list(CHAT)), JSON, max_size=4),
)
OLD_BODIES = st.builds(
    lambda prompt, fields: {"prompt": prompt, **fields, "max_tokens": 3},
    st.just("a") | st.lists(st.integers(0, 300) | st.text(max_size=3), max_size=3) | JSON,
    st.dictionaries(st.sampled_from(list(COMPLETION)), JSON, max_size=4),
)


def check_error(error: EdgeError, *statuses: int) -> None:
    answer = error_answer(error)
    assert answer.status in statuses, error
    json.dumps(answer.to_dict(), ensure_ascii=False).encode()


def check(body: Body, kind: type[ChatRequest] | type[CompletionRequest], llm: LLM) -> None:
    """A body is answered, or refused with an error that says whose fault it is."""
    try:
        request = kind.from_body(body)
        streams = request.start(llm)
    except EdgeError as error:
        check_error(error, 400)
        return
    try:
        answers = [stream.answer() for stream in streams]
    except EdgeError as error:
        check_error(request.refusal(error), 400, 500)
        return
    found = request.answer(HEAD, answers, llm)
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    assert {choice["finish_reason"] for choice in found["choices"]} <= {"stop", "length", "tool_calls"}


@settings(max_examples=300, deadline=None)
@given(body=BODIES)
def test_any_body_is_answered_or_refused(body: Body, llm: LLM) -> None:
    check(body, ChatRequest, llm)


@settings(max_examples=200, deadline=None)
@given(body=OLD_BODIES)
def test_any_body_for_completions_is_answered_or_refused(body: Body, llm: LLM) -> None:
    check(body, CompletionRequest, llm)


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_object_or_refused(raw: bytes) -> None:
    try:
        found = read_body(raw)
    except RequestError as error:
        check_error(error, 400)
    else:
        assert isinstance(found, dict)
