"""A server that speaks the page's protocol and answers by a script: for what a real one does seldom, or never.

In: a script, which says for a request what is sent and when. Out: an address, and every request that came. The page
itself comes from the package, with the headers of the real server.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import edge

WEB = Path(edge.__file__).parent / "web"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types dompurify"
)
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
ROOM = 8192

Json = dict[str, Any]  # Any: JSON
Step = Json | float | str  # an event, a pause in seconds, or a line as it is
Script = Callable[[Json], Iterator[Step]]


@dataclass(frozen=True)
class Refusal(Exception):
    """An answer with a status instead of a stream."""

    status: int
    code: str
    message: str = "refused by the script"
    retry_after: float | None = None


@dataclass
class FakeServer:
    """What a test sets, and what it finds."""

    script: Script
    port: int = 0
    config: Json = field(default_factory=dict)
    pictures: Json | None = None  # what it takes of pictures, as its status says
    health: tuple[int, Json] = (200, {"status": "ok"})
    key: str | None = None
    bodies: list[Json] = field(default_factory=list)  # of chat completions
    forgotten: int = 0  # how often it was told that a visitor has left
    left: threading.Event = field(default_factory=threading.Event)  # a client went away in mid-answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


def text_of(body: Json) -> str:
    """Return the last message that a user or a tool wrote."""
    return str(body["messages"][-1]["content"])


def delta(content: str) -> Json:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]}


def ending(reason: str = "stop", *, read: int = 120, written: int = 40, cached: int = 90) -> Iterator[Step]:
    timings = {"prompt_n": read - cached, "cache_n": cached, "prompt_ms": 412.0, "predicted_n": written}
    timings |= {"predicted_ms": 1700.0, "predicted_per_second": 23.5}
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], "timings": timings}
    details = {"cached_tokens": cached}
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    yield {"choices": [], "usage": usage | {"prompt_tokens_details": details}}
    yield "data: [DONE]\n\n"


def spoken(text: str, pause_s: float = 0.0) -> Iterator[Step]:
    """Stream a text a few letters at a time."""
    for start in range(0, len(text), 7):
        yield delta(text[start : start + 7])
        if pause_s:
            yield pause_s
    yield from ending()


@contextmanager
def serving(script: Script, port: int = 0) -> Iterator[FakeServer]:
    """Serve at a free port of 127.0.0.1 until the block is left."""
    fake = FakeServer(script)

    class Handler(_Handler):
        server_state = fake

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    fake.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_state: FakeServer

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        fake, path = self.server_state, urlsplit(self.path).path
        if path == "/health":
            self._json(*fake.health)
        elif path in ("/page-config.json", "/page/status.json", "/v1/models") and not self._has_key():
            self._refuse(Refusal(401, "invalid_api_key", "a key is needed"))
        elif path == "/page-config.json":
            self._json(200, fake.config)
        elif path == "/page/status.json":
            status = {"state": "ready", "running": 0, "waiting": 0, "max_context": ROOM, "kv_tokens": 160}
            more = {"kv_free_tokens": ROOM - 160, "rss_bytes": 1_240_000_000, "model": "GLM-4-9B int4", "tools": True}
            more |= {"pictures": fake.pictures}
            self._json(200, status | more | {"sampling": {"temperature": 0.8, "top_p": 0.8}})
        else:
            self._file(path)

    def do_POST(self) -> None:
        fake, url = self.server_state, urlsplit(self.path)
        raw = self.rfile.read(int(self.headers["content-length"]))
        if not self._has_key():
            self._refuse(Refusal(401, "invalid_api_key", "a key is needed"))
        elif url.path == "/page/read-document":
            self._read_document(parse_qs(url.query)["name"][0], raw)
        elif url.path == "/v1/chat/completions":
            body = json.loads(raw)
            fake.bodies.append(body)
            self._stream(fake.script(body))
        elif url.path == "/page/forget":
            fake.forgotten += 1
            self._json(200, {})
        else:
            self._json(404, {"error": {"message": "no such path", "code": "not_found"}})

    def _has_key(self) -> bool:
        key = self.server_state.key
        return key is None or self.headers["authorization"] == f"Bearer {key}"

    def _stream(self, steps: Iterator[Step]) -> None:
        try:
            first = next(steps)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        self._head(200, "text/event-stream")
        with suppress(ConnectionError):
            self._send(first)
            for step in steps:
                self._send(step)
            return
        self.server_state.left.set()

    def _send(self, step: Step) -> None:
        if isinstance(step, float):
            time.sleep(step)
            return
        line = step if isinstance(step, str) else f"data: {json.dumps(step)}\n\n"
        self.wfile.write(line.encode())
        self.wfile.flush()

    def _read_document(self, name: str, raw: bytes) -> None:
        from edge.documents.reader import read_document
        from edge.runtime.errors import EdgeError

        folder = Path(self.server_state.config.get("_folder", "/nonexistent"))
        try:
            (folder / name).write_bytes(raw)
            document = read_document(str(folder / name))
        except EdgeError as error:
            self._json(400, {"error": {"message": str(error), "code": "invalid_value"}})
            return
        tokens = len(document.text.split())
        body = {"name": document.name, "text": document.text, "tokens": tokens, "characters": len(document.text)}
        self._json(200, body)

    def _file(self, path: str) -> None:
        file = WEB / ("index.html" if path == "/" else path.removeprefix("/web/"))
        if not file.resolve().is_relative_to(WEB) or not file.is_file():
            self._json(404, {"error": {"message": "no such path", "code": "not_found"}})
            return
        self._head(200, TYPES.get(file.suffix, "application/octet-stream"))
        self.wfile.write(file.read_bytes())

    def _refuse(self, refusal: Refusal) -> None:
        error = {"message": refusal.message, "type": "x", "param": None, "code": refusal.code}
        after = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
        self._json(refusal.status, {"error": error}, after)

    def _json(self, status: int, body: Json, headers: dict[str, str] | None = None) -> None:
        self._head(status, "application/json", headers or {})
        self.wfile.write(json.dumps(body).encode())

    def _head(self, status: int, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", CSP)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
