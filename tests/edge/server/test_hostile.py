"""Errors as the clients of OpenAI's protocol expect them, each seen from a socket; hosts, origins, keys and bodies."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from tests.edge.server.hostile import (
    BAD,
    CHAT,
    HI,
    JSON,
    Server,
    chat,
    posted,
    serving_script,
    shape,
    short,
)
from tests.edge.server.raw import Answer, Client, exchange, request, wait_until

LONG = {"role": "user", "content": "x" * 5000}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_script(short, max_body_bytes=100_000) as server:
        yield server


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
    ],
)  # fmt: skip
def test_an_error_has_its_status_type_code_and_param(
    server: Server, data: bytes, status: int, code: str, param: str | None
) -> None:
    answer = exchange(server.port, data)
    is_refused(answer, (status, BAD, code, param))
    wait_until(lambda: server.service.num_active == 0)


def is_refused(answer: Answer, expected: tuple[object, ...]) -> None:
    assert shape(answer) == expected
    assert ("allow" in answer.headers) == (answer.status == 405)
    assert "retry-after" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_half_a_body_has_a_limit_of_time() -> None:
    with serving_script(short, body_timeout_s=0.2) as server:
        answer = exchange(server.port, request("POST", CHAT, JSON, "Content-Length: 10") + b"{}")
        is_refused(answer, (408, BAD, "request_timeout", None))
        wait_until(lambda: server.service.num_active == 0)


def test_a_full_context_is_told_in_words_that_clients_know_and_in_figures(server: Server) -> None:
    error = server.chat("x" * 5000).error
    assert error["message"].startswith("This model's maximum context length is 4096 tokens. However, ")
    assert error["n_prompt_tokens"] > 5000
    assert error["n_ctx"] == 4096
    streamed = server.chat("x" * 5000, stream=True)
    assert (streamed.status, streamed.error["code"]) == (400, "context_length_exceeded")


def test_a_chunked_body_has_the_same_limit(server: Server) -> None:
    with Client(server.port) as client:
        client.send(request("POST", CHAT, JSON, "Transfer-Encoding: chunked"))
        chunk = b"%x\r\n" % 10_000 + b" " * 10_000 + b"\r\n"
        for _ in range(11):
            client.send(chunk)
        assert shape(client.answer()) == (413, BAD, "request_too_large", None)


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
