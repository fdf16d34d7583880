"""Who may use a server: pages of other sites, names that were made to point here, clients without a key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.cli import main
from tests.edge.server.hostile import (
    CHAT,
    HI,
    JSON,
    KEY,
    Server,
    serving_script,
    shape,
    short,
)
from tests.edge.server.raw import exchange, request


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_script(short) as server:
        yield server


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    with serving_script(short, keys=(KEY, "another-key-of-this-test")) as server:
        yield server


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


def test_what_is_open_leads_nowhere_else(locked: Server) -> None:
    for path in (
        "/web/../v1/models",
        "/web/%2e%2e/v1/models",
        "/web/..%2fmetrics",
        "/health/../metrics",
        "/health/",
        "//health",
    ):
        assert locked.get(path).status in (401, 404)


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


def test_headers_of_one_stream_are_not_those_of_the_next() -> None:
    with serving_script(short, cors_origins=("https://a.example",)) as server:
        body = {"messages": [HI], "stream": True}
        shared = server.post(CHAT, body, "Origin: https://a.example")
        assert shared.headers["access-control-allow-origin"] == "https://a.example"
        for _ in range(2):
            own = server.post(CHAT, body)
            assert own.status == 200
            assert not [name for name in own.headers if name.startswith("access-control")]
            assert own.headers["x-request-id"] != shared.headers["x-request-id"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1"])
def test_other_machines_need_a_key(host: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", str(tmp_path), "--host", host]) == 2
    assert "--api-key-file" in capsys.readouterr().err


def test_a_key_that_protects_nothing_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "keys"
    for text in ("short", "a key with blanks", "kéy-with-accents", "", "# only a comment\n", "\0" * 10):
        file.write_text(text, encoding="utf-8")
        assert main(["serve", str(tmp_path), "--api-key-file", str(file)]) == 2
        error = capsys.readouterr().err
        assert "key" in error
        assert not text.strip() or text.startswith("#") or text not in error
