"""Bodies of every kind that JSON has: what is wrong with one is never an error of the server's."""

from __future__ import annotations

import json
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from tests.edge.server.hostile import (
    BAD,
    CHAT,
    HI,
    Server,
    serving_script,
    short,
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_script(short, max_body_bytes=2_000_000) as server:
        yield server


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([1e308, -1e308, 10**400, "\ud800", "\0", "<|assistant|>", "user", "function", "auto", ""])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(
            ["role", "content", "type", "text", "name", "function", "parameters", "tool_calls", "id", "json_schema",
             "schema", "properties", "include_usage", "arguments", "tool_call_id", "5", "\ud800"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip
VALID: dict[str, dict[str, object]] = {
    CHAT: {"messages": [HI]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [HI], "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": [HI]},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [104, 105]},
}
FIELDS = st.sampled_from(
    ["messages", "input", "instructions", "text", "include", "system", "stop_sequences",
     "thinking", "truncation", "prompt", "model", "stream", "stream_options", "n", "max_tokens", "temperature", "top_p",
     "stop", "logit_bias", "seed", "response_format", "tools", "tool_choice", "logprobs", "top_logprobs",
     "structured_outputs", "regex", "grammar", "deadline_s", "echo", "chat_template_kwargs", "stop_token_ids",
     "min_tokens", "top_k", "max_completion_tokens", "modalities", "user", "metadata", "return_token_ids", "tokens",
     "x"]
)  # fmt: skip
ITEM = st.fixed_dictionaries({"role": ANYTHING | st.just("user"), "content": ANYTHING})
BODIES = st.dictionaries(FIELDS, ANYTHING, max_size=4) | st.dictionaries(
    st.sampled_from(["messages", "input"]), ANYTHING | st.lists(ITEM | ANYTHING, max_size=3), min_size=1
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(path=st.sampled_from(sorted(VALID)), body=BODIES, valid=st.booleans())
def test_no_body_is_an_error_of_the_server(server: Server, path: str, body: dict[str, object], valid: bool) -> None:
    answer = server.post(path, json.dumps({**VALID[path], **body} if valid else body).encode())
    assert answer.status in (200, 400, 404), (body, answer)
    if answer.status != 200 and "messages" not in path:
        assert answer.error["type"] == BAD


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=60) | st.text(st.sampled_from('{}[]",:\\u0dea1.-+ \0nulltrue'), max_size=40).map(str.encode)
)
def test_no_bytes_are_an_error_of_the_server(server: Server, body: bytes) -> None:
    assert server.post(CHAT, body).status == 400


def test_bodies_that_only_look_small(server: Server) -> None:
    for body in (
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"response_format":' + b'{"type":' * 100_000,
        b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"max_tokens":' + b"9" * 90_000 + b',"messages":[{"role":"user","content":"hi"}]}',
        b'{"a":1,"a":2,"messages":[{"role":"user","content":"hi"}]}',
        b'{"messages":[{"role":"user","content":"hi","content":"ho"}],"seed":' + b"1" * 5000 + b"}",
    ):
        answer = server.post(CHAT, body)
        assert answer.status in (200, 400), answer


def test_prompts_before_a_bad_one_keep_no_place_in_the_queue(server: Server) -> None:
    for bad in ("", "x" * 5000, [999_999]):
        prompts = ["a", "b", bad] if isinstance(bad, str) else [[1], [2], bad]
        assert server.post("/v1/completions", {"prompt": prompts}).status == 400
        assert server.is_free()
