"""Errors as the clients of OpenAI's protocol expect them, each seen from a socket; hosts, origins, keys and bodies."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from edge.runtime.llm import LLM
from edge.server.service import Stage
from tests.edge.server.hostile import CHAT, JSON, KEY, Server, endless, posted, serving, serving_script, short
from tests.edge.server.raw import Answer, Client, exchange, request, wait_until

LONG = {"role": "user", "content": "x" * 5000}
HI = {"role": "user", "content": "hi"}
BAD = "invalid_request_error"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_script(short, max_body_bytes=100_000, body_timeout_s=0.5) as server:
        yield server


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    with serving_script(short, keys=(KEY, "another-key-of-this-test")) as server:
        yield server


def shape(answer: Answer) -> tuple[object, ...]:
    error = answer.error
    return answer.status, error["type"], error["code"], error["param"]


def chat(**fields: object) -> bytes:
    return posted(CHAT, {"messages": [HI], **fields})


IMAGE = {
    "role": "user",
    "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:"}}],
}
BAD_SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}, "strict": True}}


@pytest.mark.parametrize(
    ("data", "status", "code", "param"),
    [
        (posted(CHAT, b"{not json"), 400, "invalid_json", None),
        (posted(CHAT, b""), 400, "invalid_json", None),
        (posted(CHAT, b"\xff\xfe{}"), 400, "invalid_json", None),
        (posted(CHAT, b"[1]"), 400, "invalid_json", None),
        (posted(CHAT, b'{"messages": NaN}'), 400, "invalid_json", None),
        (posted(CHAT, b'{"messages": 1e999}'), 400, "invalid_json", None),
        (posted(CHAT, b'{"messages": "\\ud800"}'), 400, "invalid_json", None),
        (posted(CHAT, b'{"a":' * 9_000 + b"1" + b"}" * 9_000), 400, "invalid_json", None),
        (posted(CHAT, {}), 400, "missing_required_parameter", "messages"),
        (posted(CHAT, {"messages": None}), 400, "missing_required_parameter", "messages"),
        (posted("/v1/completions", {}), 400, "missing_required_parameter", "prompt"),
        (chat(temperature="hot"), 400, "invalid_type", "temperature"),
        (chat(temperature=3), 400, "invalid_value", "temperature"),
        (posted(CHAT, {"messages": [HI, {"role": "user", "content": [{"type": 5}]}]}), 400, "invalid_type",
         "messages[1].content[0].type"),
        (posted(CHAT, {"messages": [HI, {"role": "user", "content": [{"type": "smell"}]}]}), 400, "invalid_value",
         "messages[1].content[0].type"),
        (chat(temprature=1), 400, "unknown_parameter", "temprature"),
        (chat(modalities=["audio"]), 400, "unsupported_parameter", "modalities"),
        (chat(audio={"voice": "a", "format": "wav"}), 400, "unsupported_parameter", "audio"),
        (chat(web_search_options={}), 400, "unsupported_parameter", "web_search_options"),
        (chat(functions=[{"name": "f"}]), 400, "unsupported_parameter", "functions"),
        (posted("/v1/completions", {"prompt": "a", "best_of": 2}), 400, "unsupported_parameter", "best_of"),
        (posted("/v1/completions", {"prompt": "a", "suffix": "b"}), 400, "unsupported_parameter", "suffix"),
        (posted(CHAT, {"messages": [IMAGE]}), 400, "unsupported_content", "messages[0].content[1]"),
        (chat(response_format=BAD_SCHEMA), 400, "invalid_schema", "response_format.json_schema.schema"),
        (posted(CHAT, {"messages": [LONG]}), 400, "context_length_exceeded", "messages"),
        (posted("/v1/completions", {"prompt": "x" * 5000}), 400, "context_length_exceeded", "prompt"),
        (chat(model="gpt-4o"), 404, "model_not_found", "model"),
        (request("GET", "/v1/models/gpt-4o"), 404, "model_not_found", "model"),
        (request("GET", "/v1/nothing"), 404, "not_found", None),
        (request("GET", "/web/../../etc/passwd"), 404, "not_found", None),
        (request("GET", "/web/%2e%2e/__init__.py"), 404, "not_found", None),
        (request("GET", "/web/..%2f..%2fapp.py"), 404, "not_found", None),
        (request("GET", "/web//etc/passwd"), 404, "not_found", None),
        (request("GET", "/web/%00.js"), 404, "not_found", None),
        (request("GET", "/web/" + "a" * 5000 + ".js"), 404, "not_found", None),
        (request("GET", "//localhost/v1/models"), 404, "not_found", None),
        (request("GET", "*"), 404, "not_found", None),
        (request("GET", "http://evil.example/v1/models"), 404, "not_found", None),
        (request("GET", CHAT), 405, "method_not_allowed", None),
        (request("DELETE", "/v1/models"), 405, "method_not_allowed", None),
        (request("BREW", "/health"), 405, "method_not_allowed", None),
        (request("CONNECT", "localhost:80"), 404, "not_found", None),
        (request("POST", CHAT, "X-HTTP-Method-Override: GET", JSON, body=b"{}"), 400, "missing_required_parameter",
         "messages"),
        (request("GET", CHAT, "X-HTTP-Method-Override: POST"), 405, "method_not_allowed", None),
        (request("POST", CHAT, JSON, "Content-Length: 100001"), 413, "request_too_large", None),
        (request("POST", CHAT, JSON, "Content-Length: 99999999999999999999"), 413, "request_too_large", None),
        (request("POST", CHAT, "Content-Type: text/plain", body=b"{}"), 415, "unsupported_media_type", None),
        (request("POST", CHAT, "Content-Type: application/x-www-form-urlencoded", body=b"a=b"), 415,
         "unsupported_media_type", None),
        (request("POST", CHAT, body=b"{}"), 415, "unsupported_media_type", None),
        (request("POST", CHAT, JSON, "Content-Length: 10") + b"{}", 408, "request_timeout", None),
    ],
)  # fmt: skip
def test_an_error_has_its_status_type_code_and_param(
    server: Server, data: bytes, status: int, code: str, param: str | None
) -> None:
    answer = exchange(server.port, data)
    assert shape(answer) == (status, BAD, code, param)
    assert ("allow" in answer.headers) == (status == 405)
    assert "retry-after" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert server.service.num_active == 0


def test_a_full_context_is_told_in_words_that_clients_know_and_in_figures(server: Server) -> None:
    error = server.chat("x" * 5000).error
    assert error["message"].startswith("This model's maximum context length is 4096 tokens. However, ")
    assert error["n_prompt_tokens"] > 5000
    assert error["n_ctx"] == 4096
    streamed = server.chat("x" * 5000, stream=True)
    assert (streamed.status, streamed.error["code"]) == (400, "context_length_exceeded")


def test_a_missing_key_and_a_wrong_one_are_refused_without_an_echo(locked: Server) -> None:
    wrong = (
        (), ("Authorization: Bearer wrong-key-of-mine",), (f"Authorization: {KEY}",), (f"Authorization: Basic {KEY}",),
        ("Authorization: Bearer",), ("Authorization: Bearer ",), (f"Authorization: Bearer {KEY}x",),
        (f"Authorization: Bearer {KEY[:-1]}",), ("Authorization: Bearer kéy-öf-mine",),
        ("X-Api-Key: wrong-key-of-mine",),
        (f"Authorization: Bearer {KEY} {KEY}",), (f"Authorization: Bearer {KEY.upper()}",), ("Cookie: key=" + KEY,),
    )  # fmt: skip
    for headers in wrong:
        for path in (
            "/v1/models",
            "/metrics",
            "/openapi.json",
            "/page/status.json",
            "/v1/nothing",
            f"/health?key={KEY}/",
        ):
            answer = locked.get(path, *headers)
            if path.startswith("/health"):
                assert answer.status == 200
                continue
            assert shape(answer) == (401, "authentication_error", "invalid_api_key", None), headers
            assert answer.headers["www-authenticate"] == "Bearer"
            assert b"mine" not in answer.body
            assert KEY.encode() not in answer.body


def test_every_key_opens(locked: Server) -> None:
    for key in (KEY, "another-key-of-this-test"):
        for header in (f"Authorization: Bearer {key}", f"authorization: bearer  {key}", f"X-Api-Key: {key}"):
            assert locked.get("/v1/models", header).status == 200
    assert locked.get("/health").status == 200
    assert locked.get("/").status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "localhost.evil.example", "evil.example:8000", "localhost@evil.example", "evil@localhost",
        "127.0.0.1.evil.example", "127.0.0.2", "[::2]", "localhost:80:80", "localhost:x", "localhost/", "localhost#",
        "[::1", "::1", "127.1", "0x7f000001", "2130706433", "0.0.0.0", "localhost, evil.example", "\xe9", "localhos",
        "xn--localhost", "localhost:99999", "localhost\\evil.example", "169.254.169.254", "localhost;", "",
    ],
)  # fmt: skip
def test_a_foreign_host_is_refused(server: Server, host: str) -> None:
    for data in (
        request("GET", "/v1/models", f"Host: {host}", host=""),
        request("POST", CHAT, f"Host: {host}", JSON, body=json.dumps({"messages": [HI]}).encode(), host=""),
    ):
        assert shape(exchange(server.port, data)) == (403, "permission_error", "host_not_allowed", None)


def test_two_hosts_and_none_are_refused(server: Server) -> None:
    assert exchange(server.port, request("GET", "/health", "Host: localhost")).status == 400
    assert exchange(server.port, request("GET", "/health", host="")).status == 400
    assert exchange(server.port, b"GET /health HTTP/1.0\r\n\r\n").status == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8000", "[::1]:80", "localhost."])
def test_our_own_hosts_are_not_refused(server: Server, host: str) -> None:
    assert exchange(server.port, request("GET", "/v1/models", host=host)).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "null", "http://evil.example", "https://localhost.evil.example", "http://localhost:1", "http://127.0.0.1",
        "http://localhost@evil.example", "file://", "localhost", "http://localhost, http://evil.example", "",
        "chrome-extension://abc", "http://localhost/", "http://localhost#", "ftp://localhost", "http:localhost", "://localhost",
    ],
)  # fmt: skip
def test_a_foreign_origin_is_refused(server: Server, origin: str) -> None:
    """Whatever it asks for, and whatever it says it sends; also before it sends."""
    for method, *headers in (("GET",), ("POST", JSON), ("POST", "Content-Type: text/plain"), ("OPTIONS",)):
        answer = exchange(server.port, request(method, CHAT, f"Origin: {origin}", *headers, body=b"{}"))
        assert shape(answer) == (403, "permission_error", "origin_not_allowed", None)
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_our_own_origin_is_not_refused(server: Server) -> None:
    for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "localhost"):
        for scheme in ("http", "https"):
            data = request("GET", "/v1/models", f"Origin: {scheme}://{host}", host=host)
            assert exchange(server.port, data).status == 200


def test_an_allowed_origin_may_read_errors_too() -> None:
    with serving_script(short, cors_origins=("https://a.example",), keys=(KEY,)) as server:
        headers = ("Origin: https://a.example", "Access-Control-Request-Method: POST")
        asked = exchange(
            server.port, request("OPTIONS", CHAT, *headers, "Access-Control-Request-Headers: authorization")
        )
        assert asked.status == 204
        assert asked.headers["access-control-allow-headers"] == "authorization"
        refused = server.get("/v1/models", headers[0])
        assert refused.status == 401
        assert refused.headers["access-control-allow-origin"] == "https://a.example"
        assert "access-control-allow-credentials" not in refused.headers
        assert server.get("/v1/models", "Origin: https://b.example").status == 403


def test_a_chunked_body_has_the_same_limit(server: Server) -> None:
    with Client(server.port) as client:
        client.send(request("POST", CHAT, JSON, "Transfer-Encoding: chunked"))
        chunk = b"%x\r\n" % 10_000 + b" " * 10_000 + b"\r\n"
        for _ in range(11):
            client.send(chunk)
        assert shape(client.answer()) == (413, BAD, "request_too_large", None)


def test_a_full_queue_says_when_to_come_back() -> None:
    with serving_script(endless(0.002), num_blocks=4, max_waiting=2) as server:
        clients: list[Client] = []
        while server.llm.stats.waiting < 2:
            clients.append(Client(server.port).send(chat(stream=True)))
            clients[-1].until(b"ping")  # it was let in
            assert len(clients) < 50
        answer = server.chat(max_tokens=1)
        assert shape(answer) == (429, "rate_limit_error", "queue_full", None)
        assert int(answer.headers["retry-after"]) >= 1
        for client in clients:
            client.reset()
        wait_until(server.is_free)


def test_a_loading_model_says_so_and_then_answers() -> None:
    import edge

    go = threading.Event()

    def slow(stage: Stage) -> LLM:
        stage("reading weights", 0.4)
        go.wait(20)
        return edge.scripted_llm(short)

    with serving(slow) as server:
        wait_until(lambda: server.service.progress > 0)
        health = server.get("/health")
        assert (health.status, health.json["status"], health.json["progress"]) == (503, "loading", 0.4)
        assert int(health.headers["retry-after"]) >= 1
        for answer in (server.chat(), server.get("/v1/models"), server.chat(stream=True)):
            assert shape(answer) == (503, "server_error", "loading", None)
            assert int(answer.headers["retry-after"]) >= 1
        assert server.get("/").status == 200
        assert server.get("/page/status.json").json["state"] == "loading"
        go.set()
        wait_until(lambda: server.get("/health").status == 200)
        assert server.chat().status == 200


def test_a_stalled_engine_and_a_server_that_ends_are_told() -> None:
    go = threading.Event()

    def script(held: Any) -> int:
        if bytes(held[1:6]) == b"stall":
            go.wait(20)
        return short(held)

    with serving_script(script, stall_s=0.2) as server:
        with Client(server.port) as client:
            client.send(posted(CHAT, {"messages": [{"role": "user", "content": "stall"}]}))
            wait_until(lambda: server.get("/health").status == 503)
            health = server.get("/health")
            assert health.json["status"] == "stalled"
            assert int(health.headers["retry-after"]) >= 1
            go.set()
            assert client.answer().status == 200
        assert server.get("/health").status == 200
        server.service.stop()
        assert shape(server.chat()) == (503, "server_error", "shutting_down", None)
        assert server.get("/health").json["status"] == "stopping"


def test_a_deadline_before_the_first_token() -> None:
    with serving_script(endless(0.05), num_blocks=4) as server, Client(server.port) as first:
        first.send(chat(stream=True)).until(b"delta")
        answer = server.chat("x" * 30, deadline_s=0.01)
        assert shape(answer) == (504, "server_error", "deadline_exceeded", None)
        assert answer.headers["x-should-retry"] == "false"


def test_a_defect_tells_nothing_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def broken(held: object) -> int:
        raise RuntimeError("/home/someone/secret.py is broken")

    with serving_script(broken) as server:
        answer = server.chat()
        assert shape(answer) == (500, "server_error", "internal_error", None)
        assert answer.headers["x-should-retry"] == "false"
        assert b"secret" not in answer.body
        assert "secret" in caplog.text
        caplog.clear()
        streamed = server.chat(stream=True)
        assert streamed.status == 200
        *_, last = [line for line in streamed.body.decode().split("\n\n") if line.startswith("data: ")]
        told = json.loads(last.removeprefix("data: "))["error"]
        assert (told["type"], told["code"]) == ("server_error", "internal_error")
        assert "[DONE]" not in streamed.body.decode()
        assert "secret" not in streamed.body.decode()


def test_no_prompt_is_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        server.chat("a very private question")
        server.chat("a very private question", n="a very private number")
    assert "private" not in caplog.text


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
}
FIELDS = st.sampled_from(
    ["messages", "input", "instructions", "text", "include", "system", "stop_sequences",
     "thinking", "truncation", "prompt", "model", "stream", "stream_options", "n", "max_tokens", "temperature", "top_p", "stop",
     "logit_bias", "seed", "response_format", "tools", "tool_choice", "logprobs", "top_logprobs", "structured_outputs",
     "regex", "grammar", "deadline_s", "echo", "chat_template_kwargs", "stop_token_ids", "min_tokens", "top_k",
     "max_completion_tokens", "modalities", "user", "metadata", "return_token_ids", "x"]
)  # fmt: skip
ITEM = st.fixed_dictionaries({"role": ANYTHING | st.just("user"), "content": ANYTHING})
BODIES = st.dictionaries(FIELDS, ANYTHING, max_size=4) | st.dictionaries(
    st.sampled_from(["messages", "input"]), ANYTHING | st.lists(ITEM | ANYTHING, max_size=3), min_size=1
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
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
        b'{"messages":' + b"[" * 49_000 + b"]" * 49_000 + b"}",
        b'{"max_tokens":' + b"9" * 90_000 + b',"messages":[{"role":"user","content":"hi"}]}',
        b'{"a":1,"a":2,"messages":[{"role":"user","content":"hi"}]}',
        b'{"messages":[{"role":"user","content":"hi","content":"ho"}],"seed":' + b"1" * 5000 + b"}",
    ):
        answer = server.post(CHAT, body)
        assert answer.status in (200, 400), answer
