"""A client that sends bytes as they are, and reads answers as HTTP/1.1 says."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:  # Any: JSON
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:  # Any: JSON
        """The error of an answer, whose whole shape is checked."""
        assert self.headers["content-type"] == "application/json", self
        assert self.headers["x-request-id"], self
        assert "server" not in self.headers, self
        told = self.json
        assert set(told) == {"error"} or (set(told) == {"error", "type"} and told["type"] == "error"), told
        error: dict[str, Any] = told["error"]
        assert {"message", "type", "param", "code"} <= set(error), error
        assert isinstance(error["message"], str), error
        assert error["message"], error
        assert error["type"], error
        assert "Traceback" not in error["message"], error
        assert "site-packages" not in error["message"], error
        return error


class Client:
    """One connection."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT_S)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self.left = b""  # received, and not read

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Client:
        self.socket.sendall(data)
        return self

    def reset(self) -> None:
        """Close as a killed process does whose socket had unread bytes."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.socket.close()

    def ended(self) -> bool:
        """Whether nothing follows, and the connection is closed."""
        try:
            return not self.left and not self.socket.recv(1)
        except ConnectionError:
            return True

    def answer(self, *, head: bool = False) -> Answer:
        lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = {}
        for line in lines[1:-2]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if 100 <= status < 200:
            return self.answer(head=head)  # of which this only says that it will come
        if head or status in (204, 304):
            return Answer(status, headers, b"")
        if "content-length" in headers:
            return Answer(status, headers, self.exactly(int(headers["content-length"])))
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, self._chunks())
        return Answer(status, headers, self.rest())

    def until(self, mark: bytes) -> bytes:
        while mark not in self.left:
            data = self.socket.recv(2**16)
            assert data, f"the connection ended before {mark!r}: {self.left!r}"
            self.left += data
        found, _, self.left = self.left.partition(mark)
        return found + mark

    def exactly(self, size: int) -> bytes:
        while len(self.left) < size:
            data = self.socket.recv(2**16)
            assert data, f"the connection ended before {size} bytes: {self.left!r}"
            self.left += data
        found, self.left = self.left[:size], self.left[size:]
        return found

    def rest(self) -> bytes:
        while data := self.socket.recv(2**16):
            self.left += data
        found, self.left = self.left, b""
        return found

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.until(b"\r\n"), 16):
            body += self.exactly(size)
            self.exactly(2)
        self.exactly(2)
        return body


def exchange(port: int, data: bytes) -> Answer:
    """Send bytes on a connection of their own."""
    with Client(port) as client:
        return client.send(data).answer()


def request(method: str, path: str, *headers: str, body: bytes | None = None, host: str = "localhost") -> bytes:
    """Return a request as clients write it."""
    lines = [f"{method} {path} HTTP/1.1", *([f"Host: {host}"] if host else []), *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def wait_until(condition: Any, seconds: float = TIMEOUT_S) -> None:  # Any: a call of anything
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
