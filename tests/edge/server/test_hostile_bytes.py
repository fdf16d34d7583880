"""Requests with a few bytes changed, and files that are not what their names say: an answer each, and soon."""

from __future__ import annotations

import io
import random
import time
import zipfile
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.edge.server.hostile import CHAT, JSON, Server, chat, posted, serving_script, shape, short
from tests.edge.server.raw import Answer, Client, exchange, request, wait_until

CHUNKED = request("POST", CHAT, JSON, "Transfer-Encoding: chunked") + b'5\r\n{"a":\r\n2\r\n1}\r\n0\r\n\r\n'
GOOD = [
    chat(max_tokens=2),
    chat(stream=True),
    CHUNKED,
    posted("/v1/completions", {"prompt": "hi"}),
    request("GET", "/v1/models"),
    request("GET", "/web/index.html"),
    request("OPTIONS", CHAT, "Origin: http://localhost"),
    request("GET", "/page/status.json", "Connection: close"),
]
PIECES = [
    b"\r\n", b"\n", b" ", b"\0", b"\xff", b":", b"%", b"/", b"?", b"HTTP/1.0", b"0\r\n\r\n", b"Content-Length: 5\r\n",
    b"Host: localhost\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n",
    b"Upgrade: websocket\r\n", request("GET", "/health"),
]  # fmt: skip
FILE = "Content-Type: application/octet-stream"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_script(short) as server:
        yield server


def changed(data: bytes, chance: random.Random) -> bytes:
    """Return data after a few insertions, deletions, changes and copies."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, other = chance.randrange(len(found)), chance.randrange(len(found))
        match chance.randrange(4):
            case 0:
                found[at:at] = chance.choice(PIECES)
            case 1:
                del found[at : at + chance.randint(1, 20)]
            case 2:
                found[at] = chance.randrange(256)
            case _:
                found[at:at] = found[other : other + 30]
    return bytes(found)


def answered_in_time(port: int, data: bytes) -> Answer:
    """Send bytes at once; anew where that took so long that the connection was closed before them."""
    while True:
        begun, late = time.monotonic(), True
        with Client(port) as client:
            try:
                client.send(data)
                late = time.monotonic() - begun > 0.02
                return client.answer()
            except (AssertionError, ConnectionError):
                if not late:
                    raise


def test_changed_requests_are_answered() -> None:
    chance = random.Random(20)
    with serving_script(short, header_timeout_s=0.05, body_timeout_s=0.05) as server:
        for number in range(300):
            data = changed(chance.choice(GOOD), chance)
            answer = answered_in_time(server.port, data)
            assert answer.status < 500, (number, data)
            assert answer.status < 400 or answer.error["type"], (number, data)
        wait_until(server.is_free)


def test_a_client_that_asks_first_sends_no_body_that_is_refused(server: Server) -> None:
    with Client(server.port) as client:
        client.send(request("POST", CHAT, JSON, "Expect: 100-continue", "Content-Length: 99999999"))
        assert shape(client.answer())[2] == "request_too_large"
    with Client(server.port) as client:
        whole = request(
            "POST", CHAT, JSON, "Expect: 100-continue", body=b'{"messages": [{"role": "user", "content": "hi"}]}'
        )
        head, _, body = whole.partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        assert client.send(body).answer().status == 200


def unpacks_to_30_mb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"<a>" * 10_000_000)
    return file.getvalue()


FILES = {
    "nothing": b"",
    "garbage": random.Random(1).randbytes(3000),
    "broken pdf": b"%PDF-1.7\n" + random.Random(2).randbytes(3000),
    "nested html": b"<div>" * 3000,
    "bomb": unpacks_to_30_mb(),
    "zeros": bytes(100),
    "utf-16": "hi".encode("utf-16"),
    "text": "hällo".encode(),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_of_every_kind_are_read_or_refused(server: Server, kind: str) -> None:
    for name in (
        "a.txt", "a.pdf", "a.docx", "a.html", "a.md", "a", "../../etc/passwd", "..", "/", "a.txt/", "a\0b.txt", "é.txt",
        "x" * 255 + ".txt", "x" * 251 + ".pdf", "CON.txt", ".pdf", "a.pdf.exe", " ", "\n.txt", "<script>.html",
    ):  # fmt: skip
        data = request("POST", f"/page/read-document?name={quote(name)}", FILE, body=FILES[kind])
        answer = exchange(server.port, data)
        assert answer.status in (200, 400), (name, answer)
        if answer.status == 400:
            assert answer.error["param"] == "name"
            assert b"/tmp" not in answer.body
